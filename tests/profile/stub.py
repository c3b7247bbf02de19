"""What a deployment looks like to those who measure it from outside."""

import asyncio
import json
import math

from aiohttp import web


class Stub:
    """A server that answers as many tokens as are asked for."""

    url = ""
    moved = 0
    moves = False
    tells = False
    """Its requests' stages."""
    decoders = 1
    status = 200
    takes = math.inf
    """Requests, until it refuses them."""
    unknown = ""
    """A parameter that it refuses."""
    most = 10_000
    """Tokens of an answer, whatever is asked."""
    longest: int | None = None
    """Tokens of a request that it takes, as it says; None: any, and it says nothing."""
    silence: asyncio.Event | None = None
    """Until then it does not answer."""

    async def completions(self, request: web.Request) -> web.StreamResponse:
        self.takes -= 1
        if self.takes < 0:
            self.status = 503
        if self.status != 200:
            return web.json_response({"error": {"message": "not today"}}, status=self.status)
        body = await request.json()
        if self.unknown and self.unknown in json.dumps(body):
            error = {"message": f"unknown parameter {self.unknown}"}
            return web.json_response({"error": error}, status=400)
        if self.longest and len(body["prompt"]) + body["max_tokens"] > self.longest:
            return web.json_response({"error": {"message": "too long"}}, status=400)
        if self.silence:
            await self.silence.wait()
        self.moved += 100 * self.moves
        answer = web.StreamResponse()
        await answer.prepare(request)
        for _ in range(min(self.most, body["max_tokens"])):
            event = {"choices": [{"text": "x", "token_ids": [1]}]}
            await answer.write(b"data: " + json.dumps(event).encode() + b"\n\n")
            await asyncio.sleep(0.002)
        if self.tells:
            stages = {"issued_ms": 0, "context_begin_ms": 0.5, "context_end_ms": 2.0}
            if self.moves:
                stages |= {"migration_begin_ms": 2.5, "migration_end_ms": 3.0}
            event = {"choices": [], "lifecycle": [stages]}
            await answer.write(b"data: " + json.dumps(event).encode() + b"\n\n")
        await answer.write(b"data: [DONE]\n\n")
        return answer

    async def models(self, _: web.Request) -> web.Response:
        """As vLLM tells it; a server whose models have no such field is another one."""
        said = {"max_model_len": self.longest} if self.longest else {}
        return web.json_response({"data": [{"id": "other"}, {"id": "m", **said}]})

    async def stats(self, _: web.Request) -> web.Response:
        roles = ["prefill", *["decode"] * self.decoders]
        return web.json_response(
            {"transports": {"TCP": self.moved}, "instances": [{"role": role} for role in roles]}
        )
