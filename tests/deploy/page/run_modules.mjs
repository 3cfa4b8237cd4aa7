// Runs the page's modules in Node.js: `node run_modules.mjs WEB_FOLDER` takes {call, ...} as JSON, answers with JSON.
// Arrays travel as base64 of their bytes.

import { readFile } from "node:fs/promises";
import { stdin, stdout } from "node:process";
import { pathToFileURL } from "node:url";
import { text } from "node:stream/consumers";

const folder = pathToFileURL(`${process.argv[2]}/`);
const load = (name) => import(new URL(name, folder).href);
const base64 = (array) => Buffer.from(array.buffer, array.byteOffset, array.byteLength).toString("base64");
const floats = (content) => new Float32Array(new Uint8Array(Buffer.from(content, "base64")).buffer);

/** The bundle's files from the disk, in place of a server. */
const diskFiles = {
  manifest: async () => JSON.parse(await readFile(new URL("../manifest.json", folder), "utf-8")),
  read: async (path) => new Uint8Array(await readFile(new URL(`../${path}`, folder))),
};

const calls = {
  async noise({ cases }) {
    const { Generator } = await load("noise.js");
    return cases.map(([seed, picture, counts]) => {
      const generator = new Generator(BigInt(seed), picture);
      return counts.map((count) => base64(generator.normal(count)));
    });
  },

  async sample({ method, latents, sigmas, noise, combinations, upon }) {
    const { combined, euler, inpainted, renoise, sample } = await load("sampler.js");
    const velocity = async (x, step) => x.map((value) => Math.fround(value * Math.fround(0.3)) + step);
    const steps = [];
    const start = floats(latents);
    const made = {
      euler: () => euler(velocity, sigmas),
      renoise: () => renoise(velocity, sigmas, (step) => floats(noise[step])),
      dpmpp: () => combined(velocity, sigmas, combinations, start),
    };
    let step = made[method]();
    if (upon) {
      const mask = floats(upon.mask);
      step = inpainted(step, sigmas, floats(upon.clean), floats(upon.noise), (place) => mask[place] === 1);
    }
    const sampled = await sample(step, start, upon ? 1 : 0, 3, (done) => steps.push(done));
    return { sampled: base64(sampled), steps };
  },

  async tokenize({ content, record, prompts }) {
    const { PromptTokenizer } = await load("tokenizer.js");
    const tokenizer = new PromptTokenizer(content, record);
    return prompts.map((prompt) => {
      const { ids, cut } = tokenizer.encode(prompt);
      return { ids: Array.from(ids, Number), cut };
    });
  },

  async gates({ blocks, leftOut }) {
    const { gateRows } = await load("guidance.js");
    return gateRows(blocks, leftOut);
  },

  async guidedSteps({ guidance, sigmas }) {
    const { guidedSteps } = await load("guidance.js");
    return guidedSteps(guidance, sigmas);
  },

  async generate({ prompts, latents, noise, seed, keepGraphs, guidanceScale, negativePrompt, image, strength, mask }) {
    const { Pipeline } = await load("pipeline.js");
    const pipeline = await Pipeline.open(diskFiles, { threads: 1, keepGraphs });
    const given = { latents: latents && floats(latents), stepNoise: noise?.map(floats) };
    const upon = { image: image && floats(image), strength, mask: mask && floats(mask) };
    const options = { seed, ...given, ...upon, guidanceScale, negativePrompt };
    const pictures = [];
    for (const prompt of prompts) {
      const told = [];
      const onProgress = (stage, done, total) => stage === "load" || told.push([stage, done, total]);
      const { data, ...picture } = await pipeline.generate(prompt, { ...options, onProgress });
      pictures.push({ ...picture, data: base64(data), told });
    }
    return pictures;
  },
};

const { call, ...request } = JSON.parse(await text(stdin));
const answer = await calls[call](request).catch((error) => ({ error: error.message }));
stdout.write(JSON.stringify(answer), () => process.exit()); // onnxruntime-web's threads would keep the process alive
