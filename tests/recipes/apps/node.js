// One process, one listener. `node node.js ADDRESS PORT [close]`; with `close` it stops as most programs do, and loses connections.
'use strict';
const http = require('node:http');
const net = require('node:net');

const [address, port, how] = process.argv.slice(2);

const server = http.createServer((request, response) => {
  const until = performance.now() + 4; // busy, so that connections queue
  while (performance.now() < until);
  response.end(`process ${process.pid}\n`);
});

process.on('SIGTERM', () => {
  // http.Server's close() also destroys each accepted connection whose request has not been parsed yet: a reset for its client.
  // The close() of net.Server only stops listening; the process ends with its last connection.
  if (how === 'close') server.close();
  else net.Server.prototype.close.call(server);
});

server.listen({ host: address, port: Number(port), reusePort: true, backlog: 1024 });
