"""The command `supervisor`: a thin face over `supervisor.client`."""
