// The npm package `centrifuge` as it is: subscribes, and tells what happens as JSON lines on standard output.
// node sdk_client.mjs PATH_OF_PACKAGE URL TOKEN CHANNEL
import { createRequire } from "node:module";

const [folder, url, token, channel] = process.argv.slice(2);
const { Centrifuge } = createRequire(`${folder}/`)("centrifuge");
const tell = (line) => console.log(JSON.stringify(line));

const client = new Centrifuge(url, { token, minReconnectDelay: 50, maxReconnectDelay: 500 });
client.on("disconnected", (context) => tell({ what: "disconnected", code: context.code }));
const subscription = client.newSubscription(channel);
subscription.on("subscribed", (context) =>
  tell({ what: "subscribed", recovered: context.recovered, wasRecovering: context.wasRecovering, data: context.data }),
);
subscription.on("unsubscribed", (context) => tell({ what: "unsubscribed", code: context.code }));
subscription.on("error", (context) => tell({ what: "error", code: context.error.code }));
subscription.on("publication", (context) => tell({ what: "publication", items: context.data.items }));
subscription.subscribe();
client.connect();
