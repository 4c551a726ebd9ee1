/** A server-sent event: https://html.spec.whatwg.org/multipage/server-sent-events.html */
export interface ServerEvent {
  id: string;
  event: string;
  data: unknown;
}

/** The events of a stream. Comments, with which the server keeps the connection open, are left out. */
export async function* readEvents(body: ReadableStream<Uint8Array>): AsyncGenerator<ServerEvent> {
  const decoder = new TextDecoder();
  let text = "";
  for await (const chunk of body) {
    text += decoder.decode(chunk, { stream: true });
    const blocks = text.split("\n\n");
    text = blocks.pop() ?? "";
    for (const block of blocks) {
      const lines = block.split("\n").map((line) => /^(\w+): ?(.*)$/.exec(line));
      const fields = Object.fromEntries(lines.flatMap((found) => (found === null ? [] : [[found[1], found[2]]])));
      if (fields["id"] !== undefined) {
        yield { id: fields["id"], event: fields["event"] ?? "message", data: JSON.parse(fields["data"] ?? "null") };
      }
    }
  }
}
