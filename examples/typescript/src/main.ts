// Trains a LoRA on a folder of pictures over Imprint's HTTP API:
//   API=http://127.0.0.1:8080 TOKEN=imp_… npm start -- SUBJECT FOLDER LORA.safetensors
import { randomUUID } from "node:crypto";
import { readdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";

import createClient from "openapi-fetch";

import type { components, paths } from "./api.js";
import { readEvents } from "./events.js";

type Image = components["schemas"]["Image"];
type Training = components["schemas"]["Training"];

const PICTURES = /\.(png|jpe?g|webp|avif)$/i;
const api = process.env["API"] ?? "http://127.0.0.1:8080";
const headers = { Authorization: `Bearer ${process.env["TOKEN"] ?? ""}` };
const client = createClient<paths>({ baseUrl: api, headers });

/** The body of an answer; an error with everything that a problem document says, if it is one. */
function unwrap<Data>(answer: { data?: Data; error?: unknown }): Data {
  if (answer.data === undefined) {
    throw new Error(JSON.stringify(answer.error, null, 2));
  }
  return answer.data;
}

async function upload(subject: string, folder: string): Promise<Image[]> {
  const stored: Image[] = [];
  for (const name of (await readdir(folder)).filter((entry) => PICTURES.test(entry)).sort()) {
    const form = new FormData();
    form.append("files", new Blob([await readFile(join(folder, name))]), name);
    const answer = await client.POST("/api/influencer/{id}/images", {
      params: { path: { id: subject } },
      body: { files: [name] },
      bodySerializer: () => form,
    });
    for (const image of unwrap(answer).images) {
      console.log(`${name}: ${image.verdict} ${image.faults.map((fault) => fault.text).join("; ")}`);
      stored.push(image);
    }
  }
  return stored.filter((image) => image.verdict !== "bad");
}

async function train(subject: string, images: Image[]): Promise<Training> {
  const params = { path: { id: subject }, query: { dryRun: false }, header: { "idempotency-key": randomUUID() } };
  const body = { baseModel: "sd15", imageIds: images.map((image) => image.id) };
  const started = unwrap(await client.POST("/api/influencer/{id}/lora/train", { params, body }));
  if (!("id" in started)) {
    throw new Error("a training was asked for, and a quote came");
  }
  return started;
}

/** Print the events of a training until it has ended. A lost connection continues after the last event that came. */
async function follow(id: string): Promise<void> {
  let last: string | undefined;
  for (;;) {
    const resume: Record<string, string> = last === undefined ? {} : { "Last-Event-ID": last };
    try {
      const answer = await fetch(`${api}/api/trainings/${id}/events`, { headers: { ...headers, ...resume } });
      if (answer.status === 204) {
        return; // it has ended, and all its events have come
      }
      if (!answer.ok || answer.body === null) {
        throw new Error(`${answer.status} ${await answer.text()}`);
      }
      for await (const event of readEvents(answer.body)) {
        last = event.id;
        console.log(event.event, event.data);
      }
    } catch (error) {
      if (!(error instanceof TypeError)) {
        throw error;
      }
      await sleep(1000); // fetch's error for a connection that broke
    }
  }
}

async function main(subject: string, folder: string, file: string): Promise<void> {
  const { id, spec } = await train(subject, await upload(subject, folder));
  console.log(`training ${id}; the trigger word is ${spec.triggerWord}`);
  await follow(id);
  const training = unwrap(await client.GET("/api/trainings/{id}", { params: { path: { id } } }));
  if (training.status !== "ready") {
    throw new Error(`the training is ${training.status}: ${training.failure?.message ?? ""}`);
  }
  const lora = await fetch(`${api}/api/trainings/${id}/download`, { headers }); // follows the redirect to the file
  await writeFile(file, new Uint8Array(await lora.arrayBuffer()));
  console.log(`${file}: ${training.lora?.bytes} bytes for ${training.credits.charged} credits`);
}

const [subject, folder, file] = process.argv.slice(2);
if (subject === undefined || folder === undefined || file === undefined) {
  console.error("usage: npm start -- SUBJECT FOLDER LORA.safetensors");
  process.exit(2);
}
await main(subject, folder, file);
