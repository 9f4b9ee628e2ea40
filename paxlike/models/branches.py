"""The forward pass of every branch, by the name in its declaration (`architecture/`)."""

from paxlike.models import attention, feed_forward
from paxlike.models.branch import Forward

FORWARD: dict[str, Forward] = {
    "attention": attention.FORWARD,
    "local_attention": attention.LOCAL,
    "feed_forward": feed_forward.FORWARD,
}
