"""A web app with a chat node inside: a request posts a message, another one reads what a user was sent.

    pip install fastapi uvicorn
    uvicorn --app-dir docs/examples fastapi_app:app

The app keeps its node in ./roost-data, or where ROOST_DATA says.
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, HTTPException, Request
from pydantic import BaseModel

from node import Config, Node
from node.api import ApiError

NAME = "shop.example"
USERS = ("orders", "support")  # `orders` is the app itself


class Order(BaseModel):
    number: str
    text: str


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """The node lives as long as the app: it opens before the first request and closes after the last."""
    config = Config(name=NAME, data_dir=os.environ.get("ROOST_DATA", "roost-data"))
    async with Node.open(config) as node:
        for name in USERS:
            try:
                await node.create_user(name)
            except ApiError as error:
                if error.code != "name_taken":  # made by an earlier start
                    raise
        app.state.orders = await node.client("orders")
        app.state.support = await node.client("support")
        yield


app = FastAPI(lifespan=lifespan)


@app.post("/orders")
async def order(order: Order, request: Request) -> dict[str, str | None]:
    """Tell support; the order's number as key makes a repeated request the same message."""
    orders = request.app.state.orders
    sent = await orders.send(f"support@{NAME}", f"{order.number}: {order.text}", key=f"order-{order.number}")
    try:
        done = await orders.wait(sent.key, "accepted", 10)
    except TimeoutError:
        raise HTTPException(503, "not accepted yet; repeating the request is safe") from None
    return {"id": done.id, "state": done.state}


@app.get("/support")
async def support(request: Request, limit: int = 20) -> list[dict[str, str]]:
    """What support was sent, oldest first."""
    history = await request.app.state.support.history(f"orders@{NAME}", limit)
    return [{"from": message.sender, "text": message.text} for message in history]
