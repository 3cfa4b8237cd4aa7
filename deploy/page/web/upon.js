/** A picture that is drawn upon, and where its steps begin; deploy/runtime/upon.py in JavaScript. */

import { BundleError } from "./errors.js";

const HEADLINE = "The picture cannot be drawn upon.";
const GRAPH = "vae_encoder";
const DEFAULT_STRENGTH = 0.6;

/**
 * Whether a bundle can draw upon pictures.
 *
 * @param {any} manifest
 */
export function drawsUpon(manifest) {
  const { method } = manifest.sampling;
  return method !== "dpmpp" && manifest.graphs.some((/** @type {any} */ graph) => graph.name === GRAPH);
}

/**
 * What is asked for, checked; null where nothing is drawn upon.
 *
 * @param {any} manifest
 * @param {{image?: Float32Array, strength?: number, mask?: Float32Array}} asked a picture `[3, height, width]` in [0, 1], the share
 *   of the steps that is made upon it, and what of it is drawn anew, `[height, width]`: at least half, and what stays: less
 * @returns {{image: Float32Array, first: number, anew: ((place: number) => boolean) | null} | null} with the index of the first step
 *   that is made
 */
export function settledUpon(manifest, { image, strength, mask }) {
  if (image === undefined) {
    if (strength !== undefined || mask !== undefined) {
      throw new BundleError(HEADLINE, "strength and mask do nothing without image", "give a picture too");
    }
    return null;
  }
  if (!drawsUpon(manifest)) {
    throw new BundleError(HEADLINE, "the bundle has no VAE encoder", "build it with --vae-encoder");
  }
  const { height, width, pixels_per_latent: scale } = manifest.picture;
  checkNumbers("image", image, 3 * height * width);
  const steps = manifest.sampling.timesteps.length;
  const share = strength ?? DEFAULT_STRENGTH;
  const first = Math.trunc(Math.max(steps - Math.min(steps * share, steps), 0)); // as diffusers' get_timesteps
  if (!(share >= 0 && share <= 1 && first < steps)) {
    throw new BundleError(HEADLINE, `strength: wrong (expected a number above 0, at most 1, got ${strength})`, "take another");
  }
  if (mask === undefined) {
    return { image, first, anew: null };
  }
  checkNumbers("mask", mask, height * width);
  const columns = width / scale;
  const places = columns * (height / scale);
  const anew = (/** @type {number} */ place) => {
    const [row, column] = [Math.floor((place % places) / columns), place % columns];
    return mask[row * scale * width + column * scale] >= 0.5;
  };
  return { image, first, anew };
}

/** @param {string} name @param {Float32Array} numbers @param {number} count */
function checkNumbers(name, numbers, count) {
  if (numbers.length !== count || !numbers.every((number) => number >= 0 && number <= 1)) {
    const complaint = `${name}: expected ${count} numbers in [0, 1], got ${numbers.length}`;
    throw new BundleError(HEADLINE, complaint, "give one of the bundle's size");
  }
}

/**
 * Latents drawn from what the encoder says of a picture.
 *
 * @param {Float32Array} mean
 * @param {Float32Array | undefined} logVariance none of a VAE that draws nothing
 * @param {(count: number) => Float32Array} noise
 */
export function drawnFromLaw(mean, logVariance, noise) {
  if (logVariance === undefined) {
    return mean;
  }
  const draw = noise(mean.length);
  return mean.map((x, k) => x + Math.fround(Math.fround(Math.exp(0.5 * logVariance[k])) * draw[k]));
}
