"""Flask: static files, a session with a signed cookie, a form with a redirect."""

from __future__ import annotations

import os

from flask import Flask, Response, jsonify, make_response, redirect, request, session, url_for

app = Flask(__name__)
app.secret_key = os.environ.get("SHOP_KEY", "only for tests")

PAGE = """<!doctype html><title>Shop</title><link rel="icon" href="{icon}"><link rel="stylesheet" href="{style}">
<p id="count">{count} in the basket</p><p id="script">no script</p>
<form method="post" action="{add}"><button>Add</button></form><script src="{script}"></script>"""


@app.get("/")
def index() -> str:
    """The basket of this session."""
    return PAGE.format(
        count=session.get("count", 0),
        add=url_for("add"),
        icon=url_for("static", filename="icon.svg"),
        style=url_for("static", filename="shop.css"),
        script=url_for("static", filename="shop.js"),
    )


@app.post("/add")
def add() -> object:
    """Add one, and redirect to the basket."""
    session["count"] = session.get("count", 0) + 1
    return redirect(url_for("index"))


@app.get("/cookies")
def cookies() -> Response:
    """The names of the cookies that reached this app."""
    return jsonify(sorted(request.cookies))


@app.get("/me")
def me() -> Response:
    """The request as Flask sees it."""
    return jsonify(url=url_for("me", _external=True), client=request.remote_addr)


@app.get("/set")
def set_cookie() -> Response:
    """Set one cookie, with the name and the attributes that the query gives."""
    response = make_response("set")
    response.headers.add("Set-Cookie", f"{request.args['name']}=1; {request.args.get('attributes', '')}")
    return response


@app.get("/worker.js")
def worker() -> Response:
    """A service worker that asks for the whole origin."""
    headers = {"Content-Type": "text/javascript", "Service-Worker-Allowed": "/"}
    return Response("self.addEventListener('fetch', () => {});", headers=headers)
