// Two workers, each with a listener of its own: with reusePort the primary does not share one among them.
'use strict';
const cluster = require('node:cluster');

if (cluster.isPrimary) {
  for (let worker = 0; worker < 2; worker++) cluster.fork();
  process.on('SIGTERM', () => {
    for (const worker of Object.values(cluster.workers)) worker.process.kill('SIGTERM');
  });
  cluster.on('exit', () => {
    if (Object.keys(cluster.workers).length === 0) process.exit(0);
  });
} else {
  require('./node.js');
  // The channel to the primary would keep a worker alive after its last connection.
  process.on('SIGTERM', () => process.channel.unref());
}
