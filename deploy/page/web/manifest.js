/** What the page knows of its bundle before it loads anything; the two were written together, so their format is known. */

import { BundleError } from "./errors.js";

const VENDOR = "web/vendor/";

/**
 * Complain of a bundle that cannot draw here.
 *
 * @param {any} manifest
 */
export function checkDrawable(manifest) {
  if (!manifest.files.some((/** @type {any} */ file) => file.path.startsWith(VENDOR))) {
    const complaint = "It was built without onnxruntime-web and the tokenizers library";
    const remedy = "run `flash-deploy web-runtime -o RUNTIME` and build the bundle again with `--web-runtime RUNTIME`";
    throw new BundleError("This bundle cannot draw in a browser.", complaint, remedy);
  }
}

/**
 * Bytes that drawing downloads: graphs and tokenizers; the VAE's encoder comes with the first picture that is drawn upon.
 *
 * @param {any} manifest
 */
export function downloadBytes(manifest) {
  const graphs = manifest.graphs.filter((/** @type {any} */ graph) => graph.name !== "vae_encoder");
  const paths = [...graphs, ...manifest.text.tokenizers].flatMap(({ path }) => [path, `${path}.data`]);
  return manifest.files
    .filter((/** @type {any} */ file) => paths.includes(file.path))
    .reduce((/** @type {number} */ sum, /** @type {any} */ file) => sum + file.size_bytes, 0);
}

/**
 * The devices that can draw the bundle, the best first, and why the others cannot.
 *
 * @param {any} manifest
 * @returns {Promise<{provider: "wasm" | "webgpu", label: string, refused: string}[]>}
 */
export async function devices(manifest) {
  const adapter = await /** @type {any} */ (navigator).gpu?.requestAdapter().catch(() => null);
  const refused = refusal(manifest, adapter);
  const gpu = { provider: /** @type {const} */ ("webgpu"), label: "GPU, webgpu", refused };
  const cpu = { provider: /** @type {const} */ ("wasm"), label: "CPU, wasm", refused: "" };
  const software = adapter?.info?.isFallbackAdapter ?? false; // a GPU played by the CPU: slower than the CPU itself
  return refused || software ? [cpu, gpu] : [gpu, cpu];
}

/** @param {any} manifest @param {any} adapter @returns {string} why WebGPU cannot draw the bundle; empty if it can */
function refusal(manifest, adapter) {
  if (!adapter) {
    return "this browser has no WebGPU";
  }
  if (manifest.compute === "fp16" && !adapter.features.has("shader-f16")) {
    return "this GPU computes no fp16 in WebGPU (no shader-f16)";
  }
  return "";
}
