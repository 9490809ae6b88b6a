"""The gRPC face of the daemon: servicers, conversion, the error table on the wire, authentication.

With `client`, the only part that imports grpc.
"""

import os

# The daemon never forks; gRPC's fork handlers cost time and warn. Must be set before grpc is imported.
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"
