"""Networks whose features metrics read, one file each, and their registry."""

from condistill.evaluate.networks.network import NETWORKS, LocatedNetwork, Network, features_of, register_network
from condistill.evaluate.networks.resize import resize

__all__ = ["NETWORKS", "LocatedNetwork", "Network", "features_of", "register_network", "resize"]
