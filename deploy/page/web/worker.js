/**
 * Draws outside the page's own thread, so that the page stays alive meanwhile, and so that ending this worker stops a picture and
 * gives all of its memory back.
 *
 * In: `{id, request, options}`, what `Pipeline.generate` and `Pipeline.open` take; a worker is opened once, with its first
 * options.
 * Out: `{id, progress}` any number of times, then `{id, picture}` or `{id, error}`.
 */

import { HttpFiles } from "./files.js";
import { Pipeline } from "./pipeline.js";

const files = new HttpFiles(new URL("..", import.meta.url));
/** @type {Promise<Pipeline> | null} */
let opened = null;
let last = Promise.resolve(); // pictures are drawn one after another: two would load their graphs into one memory

self.onmessage = ({ data }) => {
  last = last.then(() => answer(data));
};

/** @param {any} data */
async function answer({ id, request: { prompt, ...request }, options }) {
  try {
    const pipeline = await (opened ??= open(options));
    const onProgress = (/** @type {any[]} */ ...progress) => self.postMessage({ id, progress });
    self.postMessage({ id, picture: await pipeline.generate(prompt, { ...request, onProgress }) });
  } catch (error) {
    self.postMessage({ id, error: /** @type {Error} */ (error).message });
  }
}

/** @param {any} options */
async function open(options) {
  const pipeline = await Pipeline.open(files, options);
  await files.forgetOthers();
  return pipeline;
}
