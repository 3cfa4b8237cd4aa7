/**
 * Guidance: what a step adds to what the network predicts; exporters/guidance.py in JavaScript, in fp32 like it.
 *
 * @typedef {object} Guidance as a bundle's manifest has it, `sampling.guidance`
 * @property {number} guidance_scale counted from 1, which is none
 * @property {string} negative_prompt
 * @property {number[]} guidance_interval noise levels of steps that are guided
 * @property {number[]} skip_guidance_layers left out in a third prediction
 * @property {number} skip_layer_guidance_scale
 * @property {number} skip_layer_guidance_start
 * @property {number} skip_layer_guidance_stop
 *
 * @typedef {"prompt" | "negative" | "skipped"} Side of what the network is asked for its prediction
 */

import { BundleError } from "./errors.js";

const LARGEST_SCALE = 100;

/**
 * The guidance of a picture: what is asked for, else the bundle's own.
 *
 * @param {any} manifest
 * @param {{guidanceScale?: number, negativePrompt?: string}} asked
 * @returns {Guidance}
 */
export function settledGuidance(manifest, { guidanceScale, negativePrompt }) {
  const own = manifest.sampling.guidance;
  const guidance = { ...own };
  if (guidanceScale !== undefined) {
    if (!(guidanceScale >= 0 && guidanceScale <= LARGEST_SCALE)) {
      const complaint = `guidanceScale: wrong (expected a number from 0 to ${LARGEST_SCALE}; 1 is none, got ${guidanceScale})`;
      throw new BundleError("The picture cannot be guided.", complaint, "take another scale");
    }
    guidance.guidance_scale = guidanceScale;
  }
  if (negativePrompt !== undefined) {
    if (negativePrompt && guidance.guidance_scale <= 1) {
      const complaint = `negativePrompt: does nothing without guidance (got guidanceScale ${guidance.guidance_scale})`;
      throw new BundleError("The picture cannot be guided.", complaint, "take a guidanceScale above 1, or leave it out");
    }
    guidance.negative_prompt = negativePrompt;
  }
  return guidance;
}

/**
 * What the network is asked for in each step, and the scale of its guidance there; 1 where it is not guided.
 *
 * @param {Guidance} guidance
 * @param {number[]} sigmas one more than there are steps
 * @returns {{scale: number, skips: boolean}[]}
 */
export function guidedSteps(guidance, sigmas) {
  const [low, high] = guidance.guidance_interval;
  const steps = sigmas.length - 1;
  const on = guidance.guidance_scale > 1;
  return sigmas.slice(0, -1).map((sigma, step) => ({
    scale: on && low <= sigma && sigma <= high ? guidance.guidance_scale : 1,
    skips:
      on &&
      guidance.skip_guidance_layers.length > 0 &&
      steps * guidance.skip_layer_guidance_start < step &&
      step < steps * guidance.skip_layer_guidance_stop,
  }));
}

/**
 * A step's velocity.
 *
 * @param {{scale: number, skips: boolean}} step
 * @param {number} skipScale
 * @param {(side: Side) => Promise<Float32Array>} predicted asks the network
 */
export async function guidedVelocity({ scale, skips }, skipScale, predicted) {
  const own = await predicted("prompt");
  let velocity = own;
  if (scale > 1) {
    const negative = await predicted("negative");
    const strength = Math.fround(scale);
    velocity = own.map((v, k) => negative[k] + Math.fround(strength * Math.fround(v - negative[k])));
  }
  if (skips) {
    const skipped = await predicted("skipped");
    const strength = Math.fround(skipScale);
    velocity = velocity.map((v, k) => v + Math.fround(strength * Math.fround(own[k] - skipped[k])));
  }
  return velocity;
}

/**
 * The modulations of a prompt with which the denoiser leaves some blocks out: a block whose gates are 0 adds nothing.
 *
 * @param {import("./sessions.js").Value} modulations `[steps, rows, channels]`
 * @param {{num_layers: number, dual_attention_layers: number[]}} blocks
 * @param {number[]} leftOut
 */
export function withoutBlocks(modulations, blocks, leftOut) {
  const [steps, rows, channels] = modulations.dims;
  const data = Float32Array.from(/** @type {Float32Array} */ (modulations.data));
  for (const row of gateRows(blocks, leftOut)) {
    for (let step = 0; step < steps; step++) {
      const first = (step * rows + row) * channels;
      data.fill(0, first, first + channels);
    }
  }
  return { data, dims: modulations.dims };
}

/**
 * Every third row of a block is a gate, of six for each stream, nine for the picture's with dual attention; the last block's text
 * has two rows and no gate (exporters/modulations.py).
 *
 * @param {{num_layers: number, dual_attention_layers: number[]}} blocks
 * @param {number[]} leftOut
 */
export function gateRows({ num_layers, dual_attention_layers }, leftOut) {
  const gates = [];
  let first = 0;
  for (let block = 0; block < num_layers; block++) {
    const own = (dual_attention_layers.includes(block) ? 9 : 6) + (block === num_layers - 1 ? 0 : 6);
    for (let row = 2; leftOut.includes(block) && row < own; row += 3) {
      gates.push(first + row);
    }
    first += own + (block === num_layers - 1 ? 2 : 0);
  }
  return gates;
}
