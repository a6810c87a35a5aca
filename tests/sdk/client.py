"""An application on the Python SDK, version 1 or 2.

`tests/it/sdk/client.rs` starts it and speaks to it by lines: first a JSON
object with `url`, `client_id` and `tokens`, then `call N` for N calls of a tool
at once. Each line is answered by one with the `outcomes`, the URLs of all
`logins` that were asked for, and the `tokens` as they are stored.
"""

import asyncio
import contextlib
import json
import sys
import time

import mcp
from mcp.client.auth import OAuthClientProvider
from mcp.shared.auth import OAuthClientInformationFull, OAuthClientMetadata, OAuthToken


async def main():
    lines = await standard_input()
    login = StoredLogin(**json.loads(await lines.readline()))
    session = Session(login)
    while line := await lines.readline():
        count = int(line.split()[1])
        outcomes = await asyncio.gather(*(session.call() for _ in range(count)))
        reply = {"outcomes": outcomes, "logins": login.logins, "tokens": login.tokens}
        print(json.dumps(reply), flush=True)
    await session.close()


class StoredLogin:
    """What an application keeps of a login; implements TokenStorage."""

    def __init__(self, url, client_id, tokens, **_others):
        self.url = url
        self.client_id = client_id
        self.tokens = tokens
        self.logins = []

    def provider(self):
        provider = OAuthClientProvider(
            server_url=self.url,
            client_metadata=OAuthClientMetadata(
                client_name="python", redirect_uris=[REDIRECT]
            ),
            storage=self,
            redirect_handler=self.ask_for_a_login,
            callback_handler=self.nobody_logs_in,
        )
        # The SDK refreshes by its clock only (a 401 is a login to it), and its
        # TokenStorage has no place for when a stored token expires. Without this
        # the first token that expires after a start ends in a login, whatever
        # the server does.
        provider.context.token_expiry_time = self.tokens["expires_at"]
        return provider

    async def get_tokens(self):
        return OAuthToken.model_validate(self.tokens)

    async def set_tokens(self, tokens):
        self.tokens = tokens.model_dump(exclude_none=True)
        self.tokens["expires_at"] = time.time() + tokens.expires_in

    async def get_client_info(self):
        return OAuthClientInformationFull(
            client_id=self.client_id,
            redirect_uris=[REDIRECT],
            token_endpoint_auth_method="none",
        )

    async def set_client_info(self, client_info):
        self.client_id = client_info.client_id

    async def ask_for_a_login(self, url):
        """A browser would open now."""
        self.logins.append(url)

    async def nobody_logs_in(self):
        raise RuntimeError("nobody logs in")


class Session:
    """A session in a task of its own, because what breaks one cancels the task
    that opened it."""

    def __init__(self, login):
        self.login = login
        self.calls = asyncio.Queue()
        self.task = asyncio.create_task(self.run())

    async def call(self):
        """One call; all that follow fail once the session has broken."""
        outcome = asyncio.get_running_loop().create_future()
        self.calls.put_nowait(outcome)
        await asyncio.wait([outcome, self.task], return_when=asyncio.FIRST_COMPLETED)
        return outcome.result() if outcome.done() else self.broken()

    async def close(self):
        self.calls.put_nowait(None)
        await asyncio.wait([self.task], timeout=1)

    async def run(self):
        async with connected(self.login) as client:
            answers = set()
            while outcome := await self.calls.get():
                # The loop itself keeps no task alive.
                task = asyncio.create_task(self.answer(client, outcome))
                answers.add(task)
                task.add_done_callback(answers.discard)

    @staticmethod
    async def answer(client, outcome):
        try:
            result = await client.call_tool("whoami", {})
            outcome.set_result(f"ok {result.content[0].text}")
        except Exception as error:
            outcome.set_result(told(error))

    def broken(self):
        error = self.task.exception() if not self.task.cancelled() else None
        return f"broken {told(error) if error else 'session'}"


@contextlib.asynccontextmanager
async def connected(login):
    if hasattr(mcp, "Client"):
        import httpx2
        from mcp.client.streamable_http import streamable_http_client

        async with httpx2.AsyncClient(auth=login.provider(), timeout=TIMEOUT) as http:
            transport = streamable_http_client(login.url, http_client=http)
            async with mcp.Client(transport) as client:
                yield client
    else:
        from mcp.client.streamable_http import streamablehttp_client

        streams = streamablehttp_client(
            login.url, auth=login.provider(), timeout=TIMEOUT
        )
        async with streams as (read, write, _):
            async with mcp.ClientSession(read, write) as client:
                await client.initialize()
                yield client


def told(error):
    """The first cause, on one line."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"error {error!r}".splitlines()[0]


async def standard_input():
    reader = asyncio.StreamReader()
    protocol = asyncio.StreamReaderProtocol(reader)
    await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, sys.stdin)
    return reader


REDIRECT = "http://127.0.0.1:9/callback"
# Of one request. The SDK's own is 30 s.
TIMEOUT = 30

asyncio.run(main())
