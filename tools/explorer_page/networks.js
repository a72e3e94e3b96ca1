// ------------------------------------------------------------- networks.js: the models of vae_helpers.py

const data = JSON.parse(document.getElementById("data").textContent);
const bytes = (base64) => Uint8Array.from(atob(base64), (c) => c.charCodeAt(0)).buffer;
const floats = (base64) => new Float32Array(bytes(base64));

/** A layer's weights (rows, columns). They come as whole numbers, 16 bits and, where `low` has them, two
    more, with a scale for each row: 16 bits alone would err by up to 0.001 in a decoded pixel. */
function unpack({ w, low, scale, b }) {
  const high = new Int16Array(bytes(w)), scales = floats(scale), columns = high.length / scales.length;
  const rest = low && new Uint8Array(bytes(low));
  const weights = Float32Array.from(high, (value, k) =>
    (rest ? value * 4 + (rest[k >> 2] >> 2 * (k & 3) & 3) : value) * scales[Math.floor(k / columns)]);
  return { weights, columns, bias: floats(b) };
}

/** A linear layer. Inputs that are 0 cost nothing: most pixels are, and half of the hidden units. */
function linear({ weights, columns, bias }, input) {
  const active = [];
  for (let j = 0; j < columns; j++) if (input[j]) active.push(j);
  return bias.map((sum, i) => {
    const row = i * columns;
    for (const j of active) sum += weights[row + j] * input[j];
    return sum;
  });
}

const twoLayers = ([first, second], input) =>
  linear(second, linear(first, input).map((h) => Math.max(0, h)));

/** A picture (784,) -> { mu, sigma }; the AE's code is its mu, and it has no sigma. */
function encode(name, x) {
  const out = [...twoLayers(planes[name].encoder, x)];
  return { mu: out.slice(0, 2), sigma: out.length > 2 ? out.slice(2).map((v) => Math.exp(v / 2)) : null };
}

const logits = (name, z) => twoLayers(planes[name].decoder, z);
const decode = (name, ...z) => logits(name, z).map((logit) => 1 / (1 + Math.exp(-logit)));

/** -log p(x|z) in nats: the cross-entropy of all pixels. */
const reconstruction = (logits, x) => logits.reduce((sum, l, i) =>
  sum + Math.max(l, 0) - l * x[i] + Math.log1p(Math.exp(-Math.abs(l))), 0);

/** KL(N(mu, sigma²) || N(0, I)) in nats (notebook 3). */
const kl = ({ mu, sigma }) => mu.reduce((sum, m, i) =>
  sum + (m * m + sigma[i] ** 2 - 1) / 2 - Math.log(sigma[i]), 0);
