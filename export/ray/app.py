"""The server of regnet-deploy as a Ray Serve application: the same ASGI application in each replica.

`RAY_ADDRESS=local serve run config.yaml` in this folder starts it; its arguments stand in config.yaml.
"""

from ray import serve


def build(args):
    """Return the application; ``args`` are those of config.yaml."""

    def application():
        # Called in the replica: what is opened there cannot be sent to it.
        from regnet_deploy.serving.bearer_auth import read_token
        from regnet_deploy.serving.embedding import create_application
        from regnet_deploy.serving.limits import Limits
        from regnet_deploy.serving.model_version import ServeOptions

        return create_application(
            args["bundle"],
            token=read_token(None),  # of the environment's REGNET_DEPLOY_TOKEN
            name=args["name"],
            options=ServeOptions(**args["options"]),
            limits=Limits(**args["limits"]),
            decoders=args["decoders"],
        )

    @serve.deployment(name="server")
    @serve.ingress(application)
    class Server:
        async def check_health(self):
            """Have Ray replace a replica whose inference hangs."""
            if await _status(self.app, "/v2/health/live") != 200:
                raise RuntimeError("the server does not answer that it is alive")

    return Server.bind()


async def _status(app, path):
    """Ask an ASGI application, without a socket, and return the status."""
    scope = {"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "GET", "scheme": "http"}
    scope |= {"path": path, "raw_path": path.encode(), "root_path": "", "query_string": b"", "headers": []}
    found = []

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message):
        if message["type"] == "http.response.start":
            found.append(message["status"])

    await app({**scope, "client": ("127.0.0.1", 0), "server": ("127.0.0.1", 0)}, receive, send)
    return found[0] if found else None
