/**
 * Flow-matching samplers: pure functions, noise injected; deploy/runtime/sampler.py in JavaScript, in fp32 like it.
 *
 * A rectified flow's sample at noise level sigma is `(1 - sigma) x0 + sigma noise` and the network predicts the velocity
 * `noise - x0` (Liu et al. 2022, arXiv 2209.03003).
 *
 * @typedef {(latents: Float32Array, step: number) => Promise<Float32Array>} Velocity the network
 * @typedef {(latents: Float32Array, step: number) => Promise<Float32Array>} Step the latents after a step from those before it
 */

/**
 * Make steps one after another.
 *
 * @param {Step} step makes one
 * @param {Float32Array} latents before the first
 * @param {number} first index of the first step
 * @param {number} end index after that of the last
 * @param {(made: number) => void} [onStep] called after each with how many were made before it
 */
export async function sample(step, latents, first, end, onStep) {
  for (let i = first; i < end; i++) {
    latents = await step(latents, i);
    onStep?.(i - first);
  }
  return latents;
}

/**
 * Euler steps along the flow: `x += (sigma_next - sigma) v`.
 *
 * @param {Velocity} velocity
 * @param {number[]} sigmas one more than there are steps
 * @returns {Step}
 */
export function euler(velocity, sigmas) {
  const levels = Float32Array.from(sigmas);
  return async (latents, i) => {
    const predicted = await velocity(latents, i);
    const stride = Math.fround(levels[i + 1] - levels[i]);
    return latents.map((x, k) => x + Math.fround(stride * predicted[k]));
  };
}

/**
 * Predict the clean latents and noise them again: `x0 = x - sigma v`, `x = (1 - sigma_next) x0 + sigma_next noise`.
 *
 * @param {Velocity} velocity
 * @param {number[]} sigmas one more than there are steps
 * @param {(step: number) => Float32Array} noise fresh standard normal noise for each step
 * @returns {Step}
 */
export function renoise(velocity, sigmas, noise) {
  const levels = Float32Array.from(sigmas);
  return async (latents, i) => {
    const predicted = await velocity(latents, i);
    const clean = latents.map((x, k) => x - Math.fround(levels[i] * predicted[k]));
    return noised(clean, noise(i), levels[i + 1]);
  };
}

/**
 * Each step's latents as a combination of the first latents and of all clean latents so far, `x0 = x - sigma v`.
 *
 * @param {Velocity} velocity
 * @param {number[]} sigmas one more than there are steps
 * @param {number[][]} combinations for each step, of the first latents and of each step's clean latents
 * @param {Float32Array} start the first latents; steps are made in order, from the first one
 * @returns {Step}
 */
export function combined(velocity, sigmas, combinations, start) {
  const levels = Float32Array.from(sigmas);
  const terms = [start];
  return async (latents, i) => {
    const weights = Float32Array.from(combinations[i]);
    const predicted = await velocity(latents, i);
    terms.push(latents.map((x, k) => x - Math.fround(levels[i] * predicted[k])));
    return latents.map((_, k) =>
      weights.reduce((sum, weight, term) => Math.fround(sum + Math.fround(weight * terms[term][k])), 0),
    );
  };
}

/**
 * Steps after each of which what is not to change is as it was, at the step's noise level.
 *
 * @param {Step} step what draws
 * @param {number[]} sigmas one more than there are steps
 * @param {Float32Array} clean latents of what is drawn upon
 * @param {Float32Array} noise what it is noised with, one and the same in all steps
 * @param {(place: number) => boolean} anew whether a number of the latents is drawn anew
 * @returns {Step}
 */
export function inpainted(step, sigmas, clean, noise, anew) {
  const levels = Float32Array.from(sigmas);
  return async (latents, i) => {
    const drawn = await step(latents, i);
    const kept = noised(clean, noise, levels[i + 1]);
    return kept.map((x, k) => (anew(k) ? drawn[k] : x));
  };
}

/**
 * A sample of the flow at a noise level.
 *
 * @param {Float32Array} clean
 * @param {Float32Array} noise
 * @param {number} sigma of fp32
 */
export function noised(clean, noise, sigma) {
  const keep = Math.fround(1 - sigma);
  return clean.map((x, k) => Math.fround(keep * x) + Math.fround(sigma * noise[k]));
}
