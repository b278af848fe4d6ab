"""Networks whose features metrics read, one file each, and their registry."""

# ruff: noqa: F401, I001
# The order of these lines is the order of messages and of the settings that `condistill init` lists.
import condistill.evaluate.networks.inception
import condistill.evaluate.networks.dinov2
import condistill.evaluate.networks.clip
import condistill.evaluate.networks.pickscore
import condistill.evaluate.networks.hpsv2
from condistill.evaluate.networks.network import NETWORKS, LocatedNetwork, Network, features_of, register_network
from condistill.evaluate.networks.resize import resize

__all__ = ["NETWORKS", "LocatedNetwork", "Network", "features_of", "register_network", "resize"]
