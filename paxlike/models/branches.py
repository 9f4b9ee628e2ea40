"""The forward pass of every branch, by the name in its declaration (`architecture/`)."""

from paxlike.models import attention, expert_heads, experts, feed_forward
from paxlike.models.branch import Forward

FORWARD: dict[str, Forward] = {
    "attention": attention.FORWARD,
    "local_attention": attention.LOCAL,
    "expert_heads": expert_heads.FORWARD,
    "experts": experts.FORWARD,
    "feed_forward": feed_forward.FORWARD,
}
