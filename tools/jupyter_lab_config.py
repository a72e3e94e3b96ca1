"""Read by `make lab`: it opens with the first notebook, and what a kernel says is shown at once.

labconfig/page_config.json beside this file switches off the question whether one wants Jupyter's news.
"""

from pathlib import Path

config = get_config()  # noqa: F821

# The numbers of the notebooks give their order.
notebooks = sorted(Path(__file__).resolve().parents[1].glob("notebooks/[0-9]*.ipynb"))
config.LabApp.default_url = f"/lab/tree/notebooks/{notebooks[0].name}"

# By default the system holds a small message back until the one before it is acknowledged (Nagle's
# algorithm), some 40 ms on one machine. The latent explorer would lag behind the pointer.
try:
    from jupyter_server.services.kernels.connection.channels import ZMQChannelsWebsocketConnection
except ImportError:  # another version of the server: all works, only later
    pass
else:

    class PromptConnection(ZMQChannelsWebsocketConnection):
        def connect(self):
            self.websocket_handler.set_nodelay(True)
            return super().connect()

    config.ServerApp.kernel_websocket_connection_class = PromptConnection
