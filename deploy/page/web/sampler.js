/**
 * Flow-matching samplers: pure functions, noise injected; deploy/runtime/sampler.py in JavaScript, in fp32 like it.
 *
 * A rectified flow's sample at noise level sigma is `(1 - sigma) x0 + sigma noise` and the network predicts the velocity
 * `noise - x0` (Liu et al. 2022, arXiv 2209.03003).
 *
 * @typedef {(latents: Float32Array, step: number) => Promise<Float32Array>} Velocity
 * @typedef {(step: number) => void} OnStep called after each step
 */

/**
 * Euler steps along the flow: `x += (sigma_next - sigma) v`.
 *
 * @param {Velocity} velocity the network
 * @param {Float32Array} latents noise at `sigmas[0]`
 * @param {number[]} sigmas one more than there are steps
 * @param {OnStep} [onStep]
 */
export async function sampleEuler(velocity, latents, sigmas, onStep) {
  const levels = Float32Array.from(sigmas);
  for (let i = 0; i < levels.length - 1; i++) {
    const predicted = await velocity(latents, i);
    const stride = Math.fround(levels[i + 1] - levels[i]);
    latents = latents.map((x, k) => x + Math.fround(stride * predicted[k]));
    onStep?.(i);
  }
  return latents;
}

/**
 * Predict the clean latents and noise them again: `x0 = x - sigma v`, `x = (1 - sigma_next) x0 + sigma_next noise`.
 *
 * @param {Velocity} velocity the network
 * @param {Float32Array} latents noise at `sigmas[0]`
 * @param {number[]} sigmas one more than there are steps
 * @param {(step: number) => Float32Array} noise fresh standard normal noise for each step
 * @param {OnStep} [onStep]
 */
export async function sampleRenoise(velocity, latents, sigmas, noise, onStep) {
  const levels = Float32Array.from(sigmas);
  for (let i = 0; i < levels.length - 1; i++) {
    const predicted = await velocity(latents, i);
    const fresh = noise(i);
    const [level, next] = [levels[i], levels[i + 1]];
    const keep = Math.fround(1 - next);
    latents = latents.map((x, k) => {
      const clean = Math.fround(x - Math.fround(level * predicted[k]));
      return Math.fround(keep * clean) + Math.fround(next * fresh[k]);
    });
    onStep?.(i);
  }
  return latents;
}

/**
 * Each step's latents as a combination of the first latents and of all clean latents so far, `x0 = x - sigma v`.
 *
 * @param {Velocity} velocity the network
 * @param {Float32Array} latents noise at `sigmas[0]`
 * @param {number[]} sigmas one more than there are steps
 * @param {number[][]} combinations for each step, of the first latents and of each step's clean latents
 * @param {OnStep} [onStep]
 */
export async function sampleCombined(velocity, latents, sigmas, combinations, onStep) {
  const levels = Float32Array.from(sigmas);
  const terms = [latents];
  for (const [i, row] of combinations.entries()) {
    const weights = Float32Array.from(row);
    const predicted = await velocity(latents, i);
    terms.push(latents.map((x, k) => x - Math.fround(levels[i] * predicted[k])));
    latents = latents.map((_, k) =>
      weights.reduce((sum, weight, term) => Math.fround(sum + Math.fround(weight * terms[term][k])), 0),
    );
    onStep?.(i);
  }
  return latents;
}
