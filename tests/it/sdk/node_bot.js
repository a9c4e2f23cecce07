// A bot on Viber's own SDK `viber-bot`, as its README has it but for the base URL.
//
//     node_bot.js BASE_URL TOKEN
//
// Steps come on stdin, a JSON array each: name and arguments. On stdout go JSON objects, one a line: where it listens, what
// came of each step ({"done": …}), and what it received ({"event": …}). Message tokens are texts of what the SDK has of them.
"use strict";

const http = require("http");
const readline = require("readline");
const { Bot, Message } = require("viber-bot");

const [base, authToken] = process.argv.slice(2);
const tell = members => process.stdout.write(JSON.stringify(members) + "\n");

function makeBot(registerToEvents) {
	const configuration = { authToken, name: "Shop", avatar: "https://media.example/shop.jpg" };
	const bot = new Bot(registerToEvents ? { ...configuration, registerToEvents } : configuration);
	// The one thing that is not as the SDK has it.
	bot._client._url = base + "/pa";

	const person = profile => ({ user: profile.id, name: profile.name });
	bot.on("message", (message, response) => tell({
		// The SDK puts the members of a contact one place off.
		event: "message", token: message instanceof Message.Contact ? message.timestamp : message.token,
		message: message.toJson(), tracking: message.trackingData, ...person(response.userProfile)
	}));
	bot.onSubscribe(response => tell({ event: "subscribed", ...person(response.userProfile) }));
	bot.onUnsubscribe(user => tell({ event: "unsubscribed", user }));
	bot.onConversationStarted((profile, isSubscribed, context, onFinish) => {
		tell({ event: "conversation_started", context, ...person(profile) });
		onFinish(new Message.Text("Welcome"));
	});
	for (const event of ["webhook", "delivered", "seen", "client_status"]) {
		bot.on(event, data => tell({
			event, token: data.message_token, user: data.user_id || data.user && data.user.id
		}));
	}
	// The SDK has `failed` and its own errors in one.
	bot.onError(data => data.event === "failed"
		? tell({ event: "failed", token: data.message_token, user: data.user_id, desc: data.desc })
		: tell({ event: "unparsed", error: String(data) }));
	return bot;
}

function messages() {
	const media = "https://media.example/";
	const button = { Columns: 6, Rows: 1, ActionType: "reply", ActionBody: "order", Text: "Order" };
	const keyboard = { Type: "keyboard", Buttons: [button] };
	const cards = { Type: "rich_media", ButtonsGroupColumns: 6, ButtonsGroupRows: 1, Buttons: [button] };
	return [
		new Message.Text("Hello"),
		new Message.Picture(media + "a.jpg", "Look", media + "t.jpg"),
		new Message.Video(media + "a.mp4", 1000, "Look", media + "t.jpg", 10),
		new Message.File(media + "a.pdf", 1000, "a.pdf"),
		new Message.Contact("Olena", "+380441234567"),
		new Message.Location(50.4501, 30.5234),
		new Message.Url("https://shop.example/"),
		new Message.Sticker(46105),
		new Message.RichMedia(cards, null, null, null, null, "Cards", 7),
		new Message.Text("Choose", keyboard),
		new Message.Keyboard(keyboard)
	];
}

let bot = makeBot();
const texts = tokens => tokens.map(String);
// One call a message: of a list the SDK sends the last one's keyboard alone.
async function sendAll(user) {
	const tokens = [];
	for (const message of messages()) tokens.push(...await bot.sendMessage({ id: user }, message, { order: 17 }));
	return texts(tokens);
}

const steps = {
	account: () => bot.getBotProfile(),
	set_webhook: async types => {
		if (types) bot = makeBot(types);
		return (await bot.setWebhook(url)).event_types;
	},
	remove_webhook: async () => (await bot.setWebhook("")).event_types,
	send: sendAll,
	send_one: async user => texts(await bot.sendMessage({ id: user }, [new Message.Text("One more")])),
	post: async member => texts(await bot.postToPublicChat({ id: member, name: "Shop" }, new Message.Text("News"))),
	online: async users => (await bot.getOnlineStatus(users)).users,
	details: user => bot.getUserDetails({ id: user })
};

let url;
const server = http.createServer((request, response) => bot.middleware()(request, response));
server.listen(0, "127.0.0.1", () => {
	url = `http://127.0.0.1:${server.address().port}/?bot=shop`;
	tell({ url });
	const lines = readline.createInterface({ input: process.stdin });
	lines.on("line", line => {
		const [step, ...given] = JSON.parse(line);
		Promise.resolve().then(() => steps[step](...given))
			.then(result => tell({ done: step, result }), error => tell({ done: step, error: error.message || JSON.stringify(error) }));
	});
	lines.on("close", () => process.exit(0));
});
