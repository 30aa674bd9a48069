// Vercel's AI SDK with the tools of an MCP server, for each provider: how it lists them to the model, and what comes of a
// model's calls. The model is a double, which makes the calls that are given and then ends.
//
//     node ai_sdk.mjs PACKAGES URL '{"google": [["register_session", {"agent": "alice"}], ...], ...}'
import { createRequire } from "node:module";

const [packages, url, calls] = process.argv.slice(2);
const load = createRequire(`${packages}/`);
const { generateText, isStepCount } = load("ai");
const { createMCPClient } = load("@ai-sdk/mcp");

const providers = {
  google: (fetch) => load("@ai-sdk/google").createGoogleGenerativeAI({ apiKey: "none", fetch })("gemini-3-pro"),
  openai: (fetch) => load("@ai-sdk/openai").createOpenAI({ apiKey: "none", fetch })("gpt-5"),
  anthropic: (fetch) => load("@ai-sdk/anthropic").createAnthropic({ apiKey: "none", fetch })("claude-sonnet-5"),
};

// A model's answer, with one call or none.
const answers = {
  google: (call) => ({
    candidates: [
      {
        content: { role: "model", parts: [call ? { functionCall: { name: call[0], args: call[1] }, thoughtSignature: "s" } : { text: "Done." }] },
        finishReason: "STOP",
      },
    ],
  }),
  openai: (call) => ({
    id: "1",
    created_at: 1,
    model: "gpt-5",
    output: [
      call
        ? { type: "function_call", id: "fc_1", call_id: `${call[0]}-1`, name: call[0], arguments: JSON.stringify(call[1]) }
        : {
            type: "message",
            id: "msg_1",
            role: "assistant",
            content: [{ type: "output_text", text: "Done.", annotations: [] }],
          },
    ],
    usage: { input_tokens: 1, output_tokens: 1 },
  }),
  anthropic: (call) => ({
    type: "message",
    id: "1",
    model: "claude-sonnet-5",
    role: "assistant",
    content: [call ? { type: "tool_use", id: `${call[0]}-1`, name: call[0], input: call[1] } : { type: "text", text: "Done." }],
    stop_reason: call ? "tool_use" : "end_turn",
    usage: { input_tokens: 1, output_tokens: 1 },
  }),
};

const client = await createMCPClient({ transport: { type: "http", url } });
const tools = await client.tools();
const found = {};
for (const [provider, planned] of Object.entries(JSON.parse(calls))) {
  const left = [...planned];
  let listed;
  const model = providers[provider](async (_, request) => {
    listed = JSON.parse(request.body).tools;
    return new Response(JSON.stringify(answers[provider](left.shift())), { headers: { "content-type": "application/json" } });
  });
  const { steps } = await generateText({ model, tools, prompt: "Go.", stopWhen: isStepCount(planned.length + 1), maxRetries: 0 });
  found[provider] = {
    listed,
    results: steps.flatMap((step) => step.content.filter((part) => part.type.startsWith("tool-") && part.type !== "tool-call")),
    warnings: steps.flatMap((step) => step.warnings ?? []),
  };
}
await client.close();
console.log(JSON.stringify(found));
