"""The log on Kafka: one topic, one idempotent producer, and consumers that bring their own offsets.

    client    settings of librdkafka, and its errors in our terms
    topic     the topic: created, checked, named for ever
    marks     what may be concluded from an acknowledgement (pure)
    writer    LogWriter: the producer, and a thread that takes its reports
    questions what every reader asks: partitions, extents, tail
    reader    LogReader: a consumer with partitions assigned by hand
    member    LogMember: a consumer in a group

Order and completeness in a partition: an idempotent producer numbers its records, the broker takes them in that order
only, and `enable.gapless.guarantee` stops the producer for good when one is refused. So a record whose mark is
acknowledged stands behind all that was appended before it, and no callback is needed for those (they would cost a third
of the rate). `marks` checks that conclusion against the offsets, so a hole from any other cause is an error as well.
"""

from fanout.log.kafka.member import KafkaMember
from fanout.log.kafka.reader import KafkaReader
from fanout.log.kafka.topic import TopicAdmin
from fanout.log.kafka.writer import KafkaWriter

__all__ = ["KafkaMember", "KafkaReader", "KafkaWriter", "TopicAdmin"]
