"""Read by `make lab`: what a kernel says reaches the browser at once.

By default the system holds a small message back until the one before it is acknowledged (Nagle's
algorithm), some 40 ms on one machine. The latent explorer would lag behind the pointer.
"""

try:
    from jupyter_server.services.kernels.connection.channels import ZMQChannelsWebsocketConnection
except ImportError:  # another version of the server: all works, only later
    pass
else:

    class PromptConnection(ZMQChannelsWebsocketConnection):
        def connect(self):
            self.websocket_handler.set_nodelay(True)
            return super().connect()

    get_config().ServerApp.kernel_websocket_connection_class = PromptConnection  # noqa: F821
