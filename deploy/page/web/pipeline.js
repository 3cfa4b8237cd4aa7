/** Text to picture from a bundle of the native layout; deploy/runtime/pipeline.py in JavaScript. Runs in browsers and in Node.js. */

import { BundleError } from "./errors.js";
import { guidedSteps, guidedVelocity, settledGuidance, withoutBlocks } from "./guidance.js";
import { Generator } from "./noise.js";
import { combined, euler, inpainted, noised, renoise, sample } from "./sampler.js";
import { Sessions, loadRuntime } from "./sessions.js";
import { PromptTokenizer } from "./tokenizer.js";
import { drawnFromLaw, settledUpon } from "./upon.js";

/**
 * @typedef {import("./sessions.js").Value} Value
 *
 * @typedef {{manifest: () => Promise<any>, read: import("./sessions.js").Read}} Files
 *
 * @typedef {object} Picture
 * @property {Float32Array} data RGB in [0, 1], `[3, height, width]`
 * @property {number} height in pixels
 * @property {number} width in pixels
 * @property {Record<string, number>} cut how many tokens each text encoder does not see of the prompt, where there are any
 * @property {Record<string, number>} timings_ms of each stage, of loading graphs (which is part of their stages), and in all
 *
 * @typedef {(stage: "encode" | "text" | "denoise" | "decode" | "load", done: number, total: number) => void} Progress what is being done,
 *   how many parts of it are done and how many there are; parts of `load` are bytes
 */

/** A bundle that can be asked for pictures. */
export class Pipeline {
  /**
   * Open a bundle; graphs are loaded when they are needed.
   *
   * @param {Files} files
   * @param {{provider?: "wasm" | "webgpu", threads?: number, keepGraphs?: boolean}} [options] `keepGraphs` keeps graphs loaded
   *   between stages and pictures: faster the second time, more memory
   */
  static async open(files, { provider = "wasm", threads, keepGraphs = false } = {}) {
    const manifest = await files.manifest();
    const ort = await loadRuntime(provider, threads);
    const tokenizers = await Promise.all(
      manifest.text.tokenizers.map(async (/** @type {any} */ record) => {
        const content = JSON.parse(new TextDecoder().decode(await files.read(record.path)));
        return [record.input, new PromptTokenizer(content, record)];
      }),
    );
    return new Pipeline(manifest, new Map(tokenizers), new Sessions(ort, manifest, files, provider, keepGraphs));
  }

  /**
   * @param {any} manifest
   * @param {Map<string, PromptTokenizer>} tokenizers by graph input
   * @param {Sessions} sessions
   */
  constructor(manifest, tokenizers, sessions) {
    this.manifest = manifest;
    this._tokenizers = tokenizers;
    this._sessions = sessions;
  }

  /**
   * Draw a picture of a prompt.
   *
   * @param {string} prompt what to draw
   * @param {object} [options]
   * @param {number | bigint} [options.seed] of the initial noise; the Python runtime draws the same picture of it
   * @param {Float32Array} [options.latents] initial noise `[channels, height / 8, width / 8]` in place of the seed's
   * @param {Float32Array[]} [options.stepNoise] what a re-noising sampler adds after each step, in place of the seed's
   * @param {number} [options.guidanceScale] in place of the bundle's own; 1 for none
   * @param {string} [options.negativePrompt] what guidance goes away from, in place of the bundle's own
   * @param {Float32Array} [options.image] a picture to draw upon, `[3, height, width]` in [0, 1]
   * @param {number} [options.strength] the share of the steps that is made upon it; 0.6 by default
   * @param {Float32Array} [options.mask] what of it is drawn anew, `[height, width]`: 1; what stays: 0
   * @param {Progress} [options.onProgress]
   * @returns {Promise<Picture>}
   */
  async generate(prompt, options = {}) {
    const { seed = 0, latents, stepNoise, guidanceScale, negativePrompt, onProgress = () => {} } = options;
    const clock = new Clock();
    const loadedBefore = this._sessions.load_ms;
    const generator = new Generator(seed);
    const guidance = settledGuidance(this.manifest, { guidanceScale, negativePrompt });
    const upon = settledUpon(this.manifest, options);
    try {
      const clean = upon && (await this._encode(upon.image, generator, onProgress));
      if (clean) {
        clock.lap("encode");
      }
      const start = this._initial(generator, latents);
      const noise = (/** @type {number} */ step) => stepNoise?.[step] ?? generator.normal(start.length);
      onProgress("text", 0, 1);
      const { ids, cut } = this.tokenize(prompt);
      const conditions = await this._conditions(ids, guidance, onProgress);
      clock.lap("text");
      const step = this._step(conditions, guidance, start, noise, onProgress);
      const drawn = await this._sample(step, start, upon && { ...upon, clean }, onProgress);
      clock.lap("denoise");
      onProgress("decode", 0, 1);
      const [picture] = await this._run("vae_decoder", { latent_sample: this._latentArray(drawn) }, onProgress);
      await this._sessions.endStage();
      clock.lap("decode");
      const { height, width } = this.manifest.picture;
      const timings = { ...clock.laps, load: this._sessions.load_ms - loadedBefore, total: clock.total() };
      return { data: /** @type {Float32Array} */ (picture.data), height, width, cut, timings_ms: timings };
    } catch (error) {
      await this.free();
      throw error;
    }
  }

  /**
   * @param {string} prompt
   * @returns {{ids: Record<string, Value>, cut: Record<string, number>}} token ids by graph input, each
   *   `[1, length]`, and how many tokens were cut where there were any
   */
  tokenize(prompt) {
    /** @type {Record<string, Value>} */
    const ids = {};
    /** @type {Record<string, number>} */
    const cut = {};
    for (const [input, tokenizer] of this._tokenizers) {
      const encoded = tokenizer.encode(prompt);
      ids[input] = { data: encoded.ids, dims: [1, encoded.ids.length] };
      if (encoded.cut) {
        cut[input] = encoded.cut;
      }
    }
    return { ids, cut };
  }

  /** Free all graphs. */
  async free() {
    await this._sessions.free();
  }

  /**
   * What the denoiser is told of the prompt and of what it is guided by; each graph is loaded once for all.
   *
   * @param {Record<string, Value>} ids
   * @param {import("./guidance.js").Guidance} guidance
   * @param {Progress} onProgress
   * @returns {Promise<Partial<Record<import("./guidance.js").Side, {states: Value, modulations: Value}>>>}
   */
  async _conditions(ids, guidance, onProgress) {
    const steps = guidedSteps(guidance, this.manifest.sampling.sigmas);
    const texts = [ids, ...(steps.some(({ scale }) => scale > 1) ? [this.tokenize(guidance.negative_prompt).ids] : [])];
    const encoded = [];
    for (const text of texts) {
      encoded.push(await this._run("text_encoder", text, onProgress));
    }
    const conditions = [];
    for (const [states, pooled] of encoded) {
      const [modulations] = await this._run("conditioner", { pooled_projections: pooled }, onProgress);
      conditions.push({ states, modulations });
    }
    await this._sessions.endStage();
    const [prompt, negative] = conditions;
    if (!steps.some(({ skips }) => skips)) {
      return { prompt, negative };
    }
    const modulations = withoutBlocks(prompt.modulations, this.manifest.blocks, guidance.skip_guidance_layers);
    return { prompt, negative, skipped: { states: prompt.states, modulations } };
  }

  /**
   * Latents of a picture that is drawn upon; its noise is the first that the generator draws.
   *
   * @param {Float32Array} image
   * @param {Generator} generator
   * @param {Progress} onProgress
   */
  async _encode(image, generator, onProgress) {
    const { height, width } = this.manifest.picture;
    onProgress("encode", 0, 1);
    const [mean, law] = await this._run("vae_encoder", { sample: { data: image, dims: [1, 3, height, width] } }, onProgress);
    await this._sessions.endStage();
    const numbers = (/** @type {Value | undefined} */ value) => /** @type {Float32Array} */ (value?.data);
    return drawnFromLaw(numbers(mean), numbers(law), (count) => generator.normal(count));
  }

  /**
   * @param {import("./sampler.js").Step} step
   * @param {Float32Array} noise
   * @param {any} upon what is drawn upon, with its latents as `clean`; null where nothing is
   * @param {Progress} onProgress
   */
  async _sample(step, noise, upon, onProgress) {
    const { sigmas, timesteps } = this.manifest.sampling;
    const { first, clean, anew } = upon ?? { first: 0 };
    let start = upon ? noised(clean, noise, Math.fround(sigmas[first])) : noise;
    if (anew) {
      step = inpainted(step, sigmas, clean, noise, anew);
      start = first ? start : noise;
    }
    const count = timesteps.length - first;
    onProgress("denoise", 0, count);
    const drawn = await sample(step, start, first, timesteps.length, (made) => onProgress("denoise", made + 1, count));
    await this._sessions.endStage();
    return drawn;
  }

  /**
   * @param {Partial<Record<import("./guidance.js").Side, {states: Value, modulations: Value}>>} conditions
   * @param {import("./guidance.js").Guidance} guidance
   * @param {Float32Array} start
   * @param {(step: number) => Float32Array} noise
   * @param {Progress} onProgress
   */
  _step(conditions, guidance, start, noise, onProgress) {
    const { method, sigmas, combinations } = this.manifest.sampling;
    const guided = guidedSteps(guidance, sigmas);
    const velocity = (/** @type {Float32Array} */ latents, /** @type {number} */ step) =>
      guidedVelocity(guided[step], guidance.skip_layer_guidance_scale, async (side) => {
        const { states, modulations } = /** @type {any} */ (conditions[side]);
        const [, rows, channels] = modulations.dims;
        const row = modulations.data.subarray(step * rows * channels, (step + 1) * rows * channels);
        const inputs = {
          hidden_states: this._latentArray(latents),
          encoder_hidden_states: states,
          modulation: { data: row, dims: [rows, channels] },
        };
        const [predicted] = await this._run("denoiser", inputs, onProgress);
        return /** @type {Float32Array} */ (predicted.data);
      });
    const steps = {
      euler: () => euler(velocity, sigmas),
      renoise: () => renoise(velocity, sigmas, noise),
      dpmpp: () => combined(velocity, sigmas, combinations, start),
    };
    return steps[/** @type {keyof typeof steps} */ (method)]();
  }

  /**
   * @param {string} graph
   * @param {Record<string, Value>} inputs
   * @param {Progress} onProgress
   */
  async _run(graph, inputs, onProgress) {
    return this._sessions.run(graph, inputs, (done, total) => onProgress("load", done, total));
  }

  /** @param {Generator} generator @param {Float32Array | undefined} given */
  _initial(generator, given) {
    const count = this._latentDims().reduce((product, size) => product * size, 1);
    if (given === undefined) {
      return generator.normal(count);
    }
    if (given.length !== count || !given.every(Number.isFinite)) {
      const complaint = `expected ${count} finite numbers, got ${given.length}`;
      throw new BundleError("The latents do not fit the bundle.", complaint, "give one latent of the bundle's size, in fp32");
    }
    return given;
  }

  /** @param {Float32Array} data */
  _latentArray(data) {
    return { data, dims: this._latentDims() };
  }

  _latentDims() {
    const { latent_channels, height, width, pixels_per_latent } = this.manifest.picture;
    return [1, latent_channels, height / pixels_per_latent, width / pixels_per_latent];
  }
}

/** Milliseconds of stages that follow one another. */
class Clock {
  constructor() {
    this._began = performance.now();
    this._last = this._began;
    /** @type {Record<string, number>} */
    this.laps = {};
  }

  /** @param {string} stage the stage that has just ended */
  lap(stage) {
    const now = performance.now();
    this.laps[stage] = now - this._last;
    this._last = now;
  }

  total() {
    return this._last - this._began;
  }
}
