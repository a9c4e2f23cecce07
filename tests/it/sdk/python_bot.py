"""A bot on Viber's own SDK `viberbot`, as its README has it but for the base URL.

    python_bot.py BASE_URL TOKEN

Steps come on stdin, a JSON array each: name and arguments. On stdout go JSON objects, one a line: where it listens, what came
of each step ({"done": …}), and what it received ({"event": …}). Message tokens are texts of all their digits.
"""

import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import viberbot.api.api
from viberbot import Api, BotConfiguration
from viberbot.api.messages import (
    ContactMessage, FileMessage, KeyboardMessage, LocationMessage, PictureMessage, RichMediaMessage, StickerMessage,
    TextMessage, URLMessage, VideoMessage)
from viberbot.api.messages.data_types.contact import Contact
from viberbot.api.messages.data_types.location import Location

# The one thing that is not as the SDK has it.
viberbot.api.api.VIBER_BOT_API_URL = sys.argv[1] + "/pa"

viber = Api(BotConfiguration(name="Shop", avatar="https://media.example/shop.jpg", auth_token=sys.argv[2]))
printing = threading.Lock()


def tell(**members):
    with printing:
        print(json.dumps(members), flush=True)


class Webhook(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if not viber.verify_signature(body, self.headers.get("X-Viber-Content-Signature")):
            tell(event="forged", body=body.decode())
            return self.answer(403)
        try:
            request = viber.parse_request(body)
        except Exception as error:
            tell(event="unparsed", error=str(error))
            return self.answer(500)
        user = getattr(request, "sender", None) or getattr(request, "user", None)
        message = getattr(request, "message", None)
        token = getattr(request, "message_token", None)
        tell(
            event=request.event_type,
            token=str(token) if token is not None else None,
            user=user.id if user else getattr(request, "user_id", None),
            name=user.name if user else None,
            context=getattr(request, "context", None),
            desc=getattr(request, "desc", None),
            message=message.to_dict() if message else None,
            tracking=message.tracking_data if message else None)
        welcome = TextMessage(text="Welcome", tracking_data="welcome") if request.event_type == "conversation_started" else None
        self.answer(200, json.dumps(welcome.to_dict()) if welcome else "")

    def answer(self, status, body=""):
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_):
        pass


def messages():
    media = "https://media.example/"
    button = {"Columns": 6, "Rows": 1, "ActionType": "reply", "ActionBody": "order", "Text": "Order"}
    keyboard = {"Type": "keyboard", "Buttons": [button]}
    cards = {"Type": "rich_media", "ButtonsGroupColumns": 6, "ButtonsGroupRows": 1, "Buttons": [button]}
    return [
        TextMessage(text="Hello", tracking_data="order-17"),
        PictureMessage(media=media + "a.jpg", text="Look", thumbnail=media + "t.jpg"),
        VideoMessage(media=media + "a.mp4", size=1000, duration=10, thumbnail=media + "t.jpg", text="Look"),
        FileMessage(media=media + "a.pdf", size=1000, file_name="a.pdf"),
        ContactMessage(contact=Contact(name="Olena", phone_number="+380441234567")),
        LocationMessage(location=Location(lat=50.4501, lon=30.5234)),
        URLMessage(media="https://shop.example/"),
        StickerMessage(sticker_id=46105),
        RichMediaMessage(rich_media=cards, alt_text="Cards", min_api_version=7),
        TextMessage(text="Choose", keyboard=keyboard, tracking_data="order-17"),
        KeyboardMessage(keyboard=keyboard, tracking_data="order-17"),
    ]


STEPS = {
    "account": viber.get_account_info,
    "set_webhook": lambda types: viber.set_webhook(url, types) if types is not None else viber.set_webhook(url),
    "remove_webhook": viber.unset_webhook,
    "send": lambda user: [str(token) for token in viber.send_messages(user, messages())],
    "send_one": lambda user: [str(token) for token in viber.send_messages(user, TextMessage(text="One more"))],
    "post": lambda member: [str(token) for token in viber.post_messages_to_public_account(member, TextMessage(text="News"))],
    "online": viber.get_online,
    "details": viber.get_user_details,
}

server = ThreadingHTTPServer(("127.0.0.1", 0), Webhook)
threading.Thread(target=server.serve_forever, daemon=True).start()
url = f"http://127.0.0.1:{server.server_port}/viber?bot=shop"
tell(url=url)
for line in sys.stdin:
    step, *arguments = json.loads(line)
    try:
        tell(done=step, result=STEPS[step](*arguments))
    except Exception as error:
        tell(done=step, error=str(error))
