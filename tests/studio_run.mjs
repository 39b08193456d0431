// Runs web/draw.js on a model that the tests exported: node studio_run.mjs DRAW_JS FOLDER; writes FOLDER/trace.json.
import { readFileSync, writeFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const [, , source, folder] = process.argv;
const draw = await import(pathToFileURL(source));
const bytes = (name) => {
  const buffer = readFileSync(`${folder}/${name}`);
  return buffer.buffer.slice(buffer.byteOffset, buffer.byteOffset + buffer.byteLength);
};
const manifest = JSON.parse(readFileSync(`${folder}/manifest.json`, "utf8"));
const { b, infer } = JSON.parse(readFileSync(`${folder}/case.json`, "utf8"));
const model = draw.readModel(manifest, bytes("weights.bin"));
const eps = new Float64Array(bytes("eps.bin"));
const x = infer ? new Float64Array(bytes("x.bin")) : null;

const state = draw.initialState(model, b);
const size = b * model.zSize;
const trace = [];
for (let t = 0; t * size < eps.length; t++) {
  trace.push(draw.step(model, state, eps.subarray(t * size, (t + 1) * size), x));
}
const lossX = x && draw.lossX(x, trace.at(-1).canvas, b);
const plain = (value) => (ArrayBuffer.isView(value) ? [...value] : value);
const steps = trace.map((step) => Object.fromEntries(Object.entries(step).map(([name, value]) => [name, plain(value)])));
const n = model.write.n ?? 1;
const boxes = trace[0].writeWindow && trace.map(({ writeWindow }) => draw.rectangle(writeWindow, 0, n));
writeFileSync(`${folder}/trace.json`, JSON.stringify({ steps, lossX: plain(lossX), boxes }));
