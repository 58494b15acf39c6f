// node chat.mjs <chat|stream|embeddings|models> <model> <prompt>, with OPENAI_BASE_URL and OPENAI_API_KEY set.
// Prints one line of JSON: the answer, or what the package made of an error.
import OpenAI from 'openai';

const [action, model, prompt] = process.argv.slice(2);
const client = new OpenAI({ maxRetries: 0 });
const messages = [{ role: 'user', content: prompt }];

const actions = {
  async chat() {
    const { data, response } = await client.chat.completions.create({ model, messages }).withResponse();
    return {
      content: data.choices[0].message.content,
      usage: data.usage,
      headers: Object.fromEntries(response.headers),
    };
  },

  async stream() {
    const request = { model, messages, stream: true, stream_options: { include_usage: true } };
    const { data, response } = await client.chat.completions.create(request).withResponse();
    let content = '';
    let usage = null;
    let chunks = 0;
    for await (const chunk of data) {
      chunks += 1;
      content += chunk.choices[0]?.delta?.content ?? '';
      usage = chunk.usage ?? usage;
    }
    return { content, usage, chunks, headers: Object.fromEntries(response.headers) };
  },

  async embeddings() {
    const data = await client.embeddings.create({ model, input: prompt });
    return { embedding: data.data[0].embedding, usage: data.usage };
  },

  async models() {
    const names = [];
    for await (const found of client.models.list()) names.push(found.id);
    return { models: names };
  },
};

try {
  console.log(JSON.stringify(await actions[action]()));
} catch (error) {
  if (!(error instanceof OpenAI.APIError)) throw error;
  const { status, code, type, message } = error;
  console.log(JSON.stringify({ error: { name: error.constructor.name, status, code, type, message } }));
}
