"""The forward pass of every branch, by the name in its declaration (`architecture/`)."""

from paxlike.models import attention, experts, feed_forward
from paxlike.models.branch import Forward

FORWARD: dict[str, Forward] = {
    "attention": attention.FORWARD,
    "local_attention": attention.LOCAL,
    "experts": experts.FORWARD,
    "feed_forward": feed_forward.FORWARD,
}
