/**
 * Noise of a seed, the same that the Python runtime draws, so that a seed means the same picture there and here:
 * numpy's `default_rng([seed, picture]).standard_normal(shape, float32)`.
 *
 * Three published algorithms one upon another: O'Neill's seed sequence (as numpy's `SeedSequence` fixes it), PCG XSL-RR 128/64
 * (O'Neill 2014, HMC-CS-2014-0905) and the ziggurat of 256 layers (Marsaglia and Tsang 2000). numpy promises these streams for
 * `PCG64` and `SeedSequence`; how it draws normals from them may change with its major versions, and a test compares.
 */

const LAYERS = 256;
const TAIL = 3.654152885361009; // where the ziggurat's lowest layer ends
const AREA = 0.004928673233974655; // of each layer: TAIL f(TAIL) and the tail beyond, with f(x) = exp(-x^2 / 2)
const FRACTION = 2 ** 23; // what remains of 32 random bits: 8 choose the layer, one the sign

const ZIGGURAT = makeZiggurat();

/** A stream of standard normal fp32 numbers. */
export class Generator {
  /**
   * @param {number | bigint} seed the user's seed, a whole number, 0 or more
   * @param {number} [picture] which of the seed's pictures
   */
  constructor(seed, picture = 0) {
    this._pcg = new Pcg64([...words(BigInt(seed)), ...words(BigInt(picture))]);
  }

  /**
   * The next numbers of the stream.
   *
   * @param {number} count how many
   * @returns {Float32Array}
   */
  normal(count) {
    return Float32Array.from({ length: count }, () => this._one());
  }

  _one() {
    for (;;) {
      const bits = this._pcg.next32();
      const layer = bits & 0xff;
      const size = bits >>> 9;
      const sign = (bits >>> 8) & 1 ? -1 : 1;
      const x = sign * Math.fround(size * ZIGGURAT.width[layer]);
      if (size < ZIGGURAT.inside[layer]) {
        return x;
      }
      if (layer === 0) {
        return this._tail((size >>> 8) & 1 ? -1 : 1);
      }
      const step = Math.fround(ZIGGURAT.density[layer - 1] - ZIGGURAT.density[layer]);
      if (Math.fround(Math.fround(step * this._uniform()) + ZIGGURAT.density[layer]) < Math.exp(-0.5 * x * x)) {
        return x;
      }
    }
  }

  /** @param {number} sign @returns {number} a number beyond the lowest layer, by Marsaglia's method */
  _tail(sign) {
    for (;;) {
      const beyond = Math.fround(Math.fround(-1 / TAIL) * Math.fround(Math.log1p(-this._uniform())));
      const height = -Math.fround(Math.log1p(-this._uniform()));
      if (Math.fround(height + height) > Math.fround(beyond * beyond)) {
        return sign * Math.fround(Math.fround(TAIL) + beyond);
      }
    }
  }

  /** Uniform in [0, 1), 24 bits. */
  _uniform() {
    return (this._pcg.next32() >>> 8) / 2 ** 24;
  }
}

/** PCG XSL-RR 128/64, whose 64 bits are handed out as two times 32, the low half first. */
class Pcg64 {
  static MULTIPLIER = 0x2360ed051fc65da44385df649fccf645n;

  /** @param {number[]} entropy 32-bit words */
  constructor(entropy) {
    const [high, low, streamHigh, streamLow] = seedSequence(entropy);
    this._increment = BigInt.asUintN(128, (((streamHigh << 64n) | streamLow) << 1n) | 1n);
    this._state = this._increment; // one step from a state of 0
    this._state = BigInt.asUintN(128, this._state + ((high << 64n) | low));
    this._step();
    /** @type {number | null} */
    this._half = null;
  }

  /** @returns {number} 32 random bits */
  next32() {
    if (this._half !== null) {
      const half = this._half;
      this._half = null;
      return half;
    }
    this._step();
    const folded = BigInt.asUintN(64, (this._state >> 64n) ^ this._state);
    const turn = this._state >> 122n;
    const bits = BigInt.asUintN(64, (folded >> turn) | (folded << (64n - turn)));
    this._half = Number(bits >> 32n);
    return Number(bits & 0xffffffffn);
  }

  _step() {
    this._state = BigInt.asUintN(128, this._state * Pcg64.MULTIPLIER + this._increment);
  }
}

/**
 * Four 64-bit numbers out of any entropy: mixed into a pool of four words, and hashed out of it.
 *
 * @param {number[]} entropy 32-bit words
 * @returns {bigint[]}
 */
function seedSequence(entropy) {
  let constant = 0x43b0d7e5;
  const hash = (/** @type {number} */ value, /** @type {number} */ multiplier) => {
    const mixed = value ^ constant;
    constant = Math.imul(constant, multiplier);
    return fold(Math.imul(mixed, constant));
  };
  const mix = (/** @type {number} */ x, /** @type {number} */ y) => fold(Math.imul(0xca01f9dd, x) - Math.imul(0x4973f715, y));
  const pool = Array.from({ length: 4 }, (_, i) => hash(entropy[i] ?? 0, 0x931e8875));
  for (let from = 0; from < pool.length; from++) {
    for (let to = 0; to < pool.length; to++) {
      if (from !== to) {
        pool[to] = mix(pool[to], hash(pool[from], 0x931e8875));
      }
    }
  }
  for (const word of entropy.slice(pool.length)) {
    for (let to = 0; to < pool.length; to++) {
      pool[to] = mix(pool[to], hash(word, 0x931e8875));
    }
  }
  constant = 0x8b51f9dd;
  const out = Array.from({ length: 8 }, (_, i) => BigInt(hash(pool[i % 4], 0x58f38ded) >>> 0));
  return [0, 2, 4, 6].map((i) => (out[i + 1] << 32n) | out[i]);
}

/** @param {number} value 32 bits, the upper half of them folded into the lower */
function fold(value) {
  return value ^ (value >>> 16);
}

/**
 * A whole number as 32-bit words, the lowest first.
 *
 * @param {bigint} value
 */
function words(value) {
  const parts = [];
  do {
    parts.push(Number(value & 0xffffffffn));
    value >>= 32n;
  } while (value > 0n);
  return parts;
}

/** The layers' widths, the share of each that lies under the curve for certain, and the curve at their edges. */
function makeZiggurat() {
  const curve = (/** @type {number} */ x) => Math.exp(-0.5 * x * x);
  const edge = new Float64Array(LAYERS);
  edge[LAYERS - 1] = TAIL;
  for (let i = LAYERS - 1; i > 1; i--) {
    edge[i - 1] = Math.sqrt(-2 * Math.log(AREA / edge[i] + curve(edge[i])));
  }
  const base = AREA / curve(TAIL); // the lowest layer as a rectangle of the same area
  const widths = edge.map((x, i) => (i === 0 ? base : x) / FRACTION);
  const inside = edge.map((x, i) => Math.floor((i === 0 ? TAIL / base : edge[i - 1] / x) * FRACTION));
  return { width: Float32Array.from(widths), inside, density: Float32Array.from(edge, curve) };
}
