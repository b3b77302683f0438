// A complete backend, written from upscaler.proto alone: it repeats pixels and adds grain from each image's seed.
// node server.js PROTOS [HOST:PORT], where PROTOS is the folder that holds upscaler/v1/upscaler.proto
'use strict';

const crypto = require('node:crypto');
const fs = require('node:fs');
const grpc = require('@grpc/grpc-js');
const protoLoader = require('@grpc/proto-loader');
const { HealthImplementation } = require('grpc-health-check');

const [protos, address = '127.0.0.1:50051'] = process.argv.slice(2);
const SERVICE = 'upscaler.v1.UpscalerService';
const LIMIT = 64 * 2 ** 20; // gRPC itself reads no message above 4 MiB
const definition = protoLoader.loadSync(['upscaler/v1/upscaler.proto', 'status.proto'], {
  includeDirs: [protos, __dirname], keepCase: true, longs: String, enums: String, defaults: true, oneofs: true,
});

const DESCRIPTION = {
  name: 'grainy-js',
  family: 'FAMILY_OTHER',
  digest: crypto.createHash('sha256').update(fs.readFileSync(__filename)).digest('hex'),
  scales: [2, 4],
  sizes: { minimum: 1, maximum: 256, multiple_of: 1, domain_minimum: 1 },
  channels: 3,
  deterministic: false,
  batch_exact: true,
  device: 'cpu',
  precision: 'uint8',
  licence: 'Apache-2.0',
  max_message_bytes: LIMIT,
  max_batch: 8,
  domain: 'any image; an example, not a model',
};

function violations({ scale, images, options }) {
  const side = DESCRIPTION.sizes.maximum;
  const rules = [
    [DESCRIPTION.scales.includes(scale), 'scale', `one of ${DESCRIPTION.scales} is needed`],
    [images.length >= 1 && images.length <= DESCRIPTION.max_batch, 'images', '1 to 8 are accepted'],
    [new Set(images.map((i) => `${i.height} x ${i.width}`)).size <= 1, 'images', 'all must be of one size'],
    [new Set(images.map((i) => i.id)).size === images.length, 'images', 'each needs an id of its own'],
    [Object.keys(options).length === 0, 'options', 'there are none'],
  ];
  images.forEach((i, n) => rules.push(
    [i.height >= 1 && i.height <= side && i.width >= 1 && i.width <= side, `images[${n}]`, `sides of 1 to ${side}`],
    [i.data.length === i.height * i.width * 3, `images[${n}].data`, 'height * width * 3 bytes are needed'],
    [i._class_index === undefined, `images[${n}].class_index`, 'there are no classes'],
    [(i.conditioning_level ?? 0) >= 0 && (i.conditioning_level ?? 0) <= 1, `images[${n}].conditioning_level`, '0 to 1'],
  ));
  return rules.filter(([good]) => !good).map(([, field, description]) => ({ field, description }));
}

// Error details travel as a serialised google.rpc.Status in a trailer of this name.
function refusal(found) {
  const value = definition['google.rpc.BadRequest'].serialize({ field_violations: found.slice(0, 20) });
  const details = [{ type_url: 'type.googleapis.com/google.rpc.BadRequest', value }];
  const status = { code: grpc.status.INVALID_ARGUMENT, message: `${found[0].field}: ${found[0].description}`, details };
  const metadata = new grpc.Metadata();
  metadata.set('grpc-status-details-bin', definition['google.rpc.Status'].serialize(status));
  return { code: status.code, details: status.message, metadata };
}

// The model. Its randomness (AES, keyed by the seed) is the image's own, so the rest of the batch does not matter.
function upscale(image, scale) {
  const height = image.height * scale;
  const width = image.width * scale;
  const grain = crypto.createCipheriv('aes-128-ctr', Buffer.from(image.seed.padStart(32, '0'), 'hex'), Buffer.alloc(16))
    .update(Buffer.alloc(height * width * 3));
  const data = Buffer.alloc(height * width * 3);
  for (let y = 0, to = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const from = (Math.floor(y / scale) * image.width + Math.floor(x / scale)) * 3;
      for (let c = 0; c < 3; c++, to++) {
        data[to] = Math.min(255, Math.max(0, image.data[from + c] + (grain[to] % 9) - 4));
      }
    }
  }
  return { id: image.id, height, width, data };
}

function onUpscale(call, callback) {
  const found = violations(call.request);
  if (found.length > 0) return callback(refusal(found));
  const started = process.hrtime.bigint();
  const images = call.request.images.map((image) => upscale(image, call.request.scale));
  const nanos = Number(process.hrtime.bigint() - started);
  const compute_time = { seconds: Math.floor(nanos / 1e9), nanos: nanos % 1e9 };
  return callback(null, { images, digest: DESCRIPTION.digest, queue_time: { seconds: 0, nanos: 0 }, compute_time });
}

const server = new grpc.Server({ 'grpc.max_receive_message_length': LIMIT });
server.addService(definition[SERVICE], { Describe: (call, callback) => callback(null, DESCRIPTION), Upscale: onUpscale });
new HealthImplementation({ '': 'SERVING', [SERVICE]: 'SERVING' }).addToServer(server);
server.bindAsync(address, grpc.ServerCredentials.createInsecure(), (error, port) => {
  if (error) throw error;
  console.log(`serves on port ${port}`);
});
