// One line of JSON in, one out, until the input ends: {"prompts": [[token, …], …], "tokens": [count, …]} is answered by
// {"tokens": made, "cpu": seconds, "wall": seconds, "first": seconds}. Greedy, past the end of a text, one thread.
import process from "node:process";
import readline from "node:readline";
import {getLlama} from "node-llama-cpp";

const [modelPath, streams, contextSize] = process.argv.slice(2);
const llama = await getLlama({gpu: false, build: "never", maxThreads: 1, logLevel: "error", progressLogs: false});
const model = await llama.loadModel({modelPath});
const context = await model.createContext({
    sequences: Number(streams), contextSize: Number(contextSize), batchSize: 512, threads: 1
});

async function answer(sequence, prompt, count) {
    const began = performance.now();
    let made = 0, first = 0;
    await sequence.clearHistory();
    for await (const _ of sequence.evaluate(prompt, {temperature: 0, yieldEogToken: true})) {
        first ||= (performance.now() - began) / 1000;
        if (++made >= count)
            break;
    }
    return {made, first};
}

const sequences = Array.from({length: Number(streams)}, () => context.getSequence());
console.log(JSON.stringify({ready: true}));
for await (const line of readline.createInterface({input: process.stdin})) {
    const {prompts, tokens} = JSON.parse(line);
    const before = process.cpuUsage(), began = performance.now();
    const found = await Promise.all(prompts.map((prompt, at) => answer(sequences[at], prompt, tokens[at])));
    const spent = process.cpuUsage(before);
    console.log(JSON.stringify({
        tokens: found.reduce((sum, one) => sum + one.made, 0),
        cpu: (spent.user + spent.system) / 1e6,
        wall: (performance.now() - began) / 1000,
        first: found.map((one) => one.first).sort((a, b) => a - b)[Math.floor(found.length / 2)]
    }));
}
process.exit(0);
