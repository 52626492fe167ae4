// The record's numbers, and the little arithmetic that the page does with them, in doubles.

/** What the page holds as base64 of a zlib stream: JSON, a zero byte, the numbers of arrays. */
async function inflate() {
  const text = atob(document.getElementById("data").textContent);
  const packed = Uint8Array.from(text, (character) => character.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

const bytes = await inflate();
const jsonEnd = bytes.indexOf(0);
const { texts, record: packedRecord } = JSON.parse(
  new TextDecoder().decode(bytes.subarray(0, jsonEnd)),
);

const TYPES = { float32: Float32Array, uint8: Uint8Array };

/** Turns every {dtype, shape, at} of the record into {shape, values, scale}. */
function unpack(node, bytes) {
  if (Array.isArray(node)) return node.map((item) => unpack(item, bytes));
  if (node === null || typeof node !== "object") return node;
  if ("dtype" in node && "at" in node) {
    const { dtype, at, ...rest } = node;
    const Type = TYPES[dtype];
    const size = rest.shape.reduce((product, length) => product * length, Type.BYTES_PER_ELEMENT);
    // bytes hold weights from 0 to 1 in 256 steps
    return {
      ...rest,
      values: new Type(bytes.slice(at, at + size).buffer),
      scale: dtype === "uint8" ? 255 : 1,
    };
  }
  return Object.fromEntries(Object.entries(node).map(([key, item]) => [key, unpack(item, bytes)]));
}

/** The last dimension of an array at the given leading indices, as plain numbers. */
function vector(array, ...index) {
  const size = array.shape.at(-1);
  let row = 0;
  index.forEach((value, axis) => (row = row * array.shape[axis] + value));
  return Array.from(array.values.subarray(row * size, (row + 1) * size), (x) => x / array.scale);
}

/** An array (..., R, C) at the given leading indices as R rows of C numbers. */
const rowsOf = (array, ...index) =>
  range(array.shape.at(-2)).map((row) => vector(array, ...index, row));

const range = (size) => Array.from({ length: size }, (_, index) => index);
const sum = (values) => values.reduce((total, value) => total + value, 0);
const mean = (values) => sum(values) / values.length;
const dot = (a, b) => a.reduce((total, value, index) => total + value * b[index], 0);
const argmax = (values) => values.reduce((best, x, i) => (x > values[best] ? i : best), 0);
const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

const largestSize = (values) => values.reduce((most, x) => Math.max(most, Math.abs(x)), 0);
const largestDifference = (a, b) => largestSize(a.map((x, i) => x - b[i]));

/** In nats; 0 log 0 is 0. */
const entropy = (weights) => -sum(weights.map((p) => (p > 0 ? p * Math.log(p) : 0)));

function variance(values) {
  const center = mean(values);
  return mean(values.map((value) => (value - center) ** 2));
}

/**
 * Softmax in the steps that the page shows. Masked scores are null. Scores beyond what exp() can
 * hold are shifted first, which cancels in the quotient.
 */
function softmax(scores) {
  const seen = scores.filter((score) => score !== null);
  const top = Math.max(...seen);
  const shift = Math.abs(top) > 300 ? top : 0;
  const exps = scores.map((score) => (score === null ? 0 : Math.exp(score - shift)));
  const total = sum(exps);
  return { exps, total, shift, weights: exps.map((value) => value / total) };
}

/** Mean of several equally large tables. */
const meanTable = (tables) =>
  tables[0].map((row, r) => row.map((_, c) => mean(tables.map((table) => table[r][c]))));

/** Joins pieces to words: sum over the pieces of a key, mean over the pieces of a query. */
function mergeTable(table, rowWords, columnWords) {
  const columns = groups(columnWords);
  const total = (row, pieces) => sum(pieces.map((c) => table[row][c]));
  return groups(rowWords).map((rows) =>
    columns.map((pieces) => mean(rows.map((row) => total(row, pieces)))),
  );
}

/** Pieces of each word: [0, 0, 1] gives [[0, 1], [2]]. */
function groups(words) {
  const found = [];
  words.forEach((word, index) => {
    if (index > 0 && word === words[index - 1]) found.at(-1).push(index);
    else found.push([index]);
  });
  return found;
}
