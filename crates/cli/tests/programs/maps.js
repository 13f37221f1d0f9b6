// Large maps, sorting, buffers, a worker thread and a child process. Prints checksums. Argument: entries.
const count = Number(process.argv[2]);
const map = new Map();
for (let i = 0; i < count; i++) {
  map.set('key' + ((i * 7919) % count), { id: i, text: 'value ' + i, list: [i, i * 2, i * 3] });
}
const mix = (sum, value) => (sum * 31 + value) % 2147483647;
let sum = 0;
for (let round = 0; round < 3; round++) {
  for (let i = 0; i < count; i++) {
    const entry = map.get('key' + i);
    sum = mix(sum, entry.id + entry.text.length + entry.list[2]);
  }
}
console.log('map', map.size, sum);

const buffer = Buffer.alloc(count * 64);
for (let at = 0; at < buffer.length; at += 512) buffer.writeUInt32LE(at, at);
console.log('buffer', require('crypto').createHash('sha256').update(buffer).digest('hex'));

const some = JSON.parse(JSON.stringify([...map.values()].slice(0, count / 4)));
some.sort((a, b) => (a.text < b.text ? -1 : 1));
console.log('sorted', some[0].text, some[some.length - 1].text);

const work = `
  const entries = [];
  for (let i = 0; i < 100000; i++) entries.push({ i, text: 'x' + i });
  let length = 0;
  for (const entry of entries) length += entry.text.length;
  require('worker_threads').parentPort.postMessage(length);
`;
const worker = new (require('worker_threads').Worker)(work, { eval: true });
worker.on('message', (length) => console.log('worker', length));
worker.on('exit', (status) => {
  console.log('exit', status);
  console.log(require('child_process').execSync('echo child').toString().trim());
});
