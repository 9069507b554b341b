// Continues a text with a model file, piece by piece: node stream.mjs MODEL TEXT N_TOKENS
//
// Needs the package: npm install ../../node

import { Model } from "tidbit";

const [path, text, nTokens] = process.argv.slice(2);

const model = new Model(path);
const session = model.session({ "sampling.temperature": 0 });
session.append(text);
process.stdout.write(text);
for (const piece of session.generate(Number(nTokens))) {
  process.stdout.write(piece);
}
process.stdout.write("\n");
session.free();
model.free();
