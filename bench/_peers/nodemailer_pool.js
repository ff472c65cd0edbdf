// Sends the messages of standard input, a JSON line {to, raw} each, with nodemailer's pool to where $LOAD says, and prints
// {cpu_us, wall_ns}, what that took with connecting included.
'use strict';

const fs = require('fs');
const nodemailer = require('nodemailer');

const { from, ...load } = JSON.parse(process.env.LOAD);

const lines = fs.readFileSync(0, 'utf8').trimEnd().split('\n').map((line) => JSON.parse(line));
const transport = nodemailer.createTransport({
    pool: true,
    maxConnections: load.connections,
    maxMessages: Infinity,
    host: '127.0.0.1',
    port: load.port,
    requireTLS: load.tls,
    ignoreTLS: !load.tls,
    tls: { rejectUnauthorized: false },
});

const began = process.cpuUsage();
const start = process.hrtime.bigint();
Promise.all(lines.map(({ to, raw }) => transport.sendMail({ envelope: { from, to }, raw }))).then(
    () => {
        const used = process.cpuUsage(began);
        const wall = Number(process.hrtime.bigint() - start);
        transport.close();
        console.log(JSON.stringify({ cpu_us: used.user + used.system, wall_ns: wall }));
    },
    (error) => {
        console.error(error);
        process.exit(1);
    },
);
