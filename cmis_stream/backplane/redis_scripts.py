"""What the backplane keeps in Redis: keys, scripts, bytes. docs/design/roles.md tells why it is so.

A place (results topic, partition) has one hash and a stream per channel, all in one hash slot:

    {prefix}:{topic/partition}              epoch, reached, floor, and per channel last:{channel}, floor:{channel}
    {prefix}:{topic/partition}:{channel}    a stream with entries `offset-1`; its publications are PUBLISHed under its name

reached: everything up to there has been published. floor: up to there streams may be incomplete, of the place and of a channel.
last: the newest publication of a channel; without it, whatever its stream holds is of another life. A stream that has expired or
was evicted is known by its `last`. (`0-0` is no id that Redis takes, therefore `offset-1`.)
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from cmis_stream.backplane.contract import Item, Publication

Place = tuple[str, int]
"""(results topic, partition)"""

STREAM_TTL_S = 86_400
PLACE_TTL_S = 7 * 86_400
"""Workers look at their places every few seconds: only what nobody owns any more expires."""

BEGIN = """
-- KEYS: hash. ARGV: epoch, offset, ttl. Returns the offset that has been reached.
local at = redis.call('HMGET', KEYS[1], 'epoch', 'reached')
local reached, offset = tonumber(at[2]), tonumber(ARGV[2])
if at[1] ~= ARGV[1] or not reached then
  for _, field in ipairs(redis.call('HKEYS', KEYS[1])) do
    if string.sub(field, 1, 5) == 'last:' then redis.call('DEL', KEYS[1] .. ':' .. string.sub(field, 6)) end
  end
  redis.call('DEL', KEYS[1])
  redis.call('HSET', KEYS[1], 'epoch', ARGV[1], 'reached', ARGV[2], 'floor', ARGV[2])
  reached = offset
elseif reached < offset then
  redis.call('HSET', KEYS[1], 'reached', ARGV[2], 'floor', ARGV[2])
  reached = offset
end
redis.call('EXPIRE', KEYS[1], ARGV[3])
return reached
"""

WRITE = """
-- KEYS: hash, streams. ARGV: epoch, known, reached, entries per stream, ttl of the hash, ttl of streams; (key, offset, data)...
-- Returns {'done' | 'passed' | 'lost', reached}; changes something only when Redis is exactly where the writer knows it to be.
local at = redis.call('HMGET', KEYS[1], 'epoch', 'reached', 'floor')
local reached, known, floor = tonumber(at[2]), tonumber(ARGV[2]), tonumber(at[3])
if at[1] ~= ARGV[1] or not reached or reached < known then return {'lost', -2} end
if reached > known then return {'passed', reached} end
for i = 7, #ARGV, 3 do
  local key, offset, data = KEYS[tonumber(ARGV[i])], ARGV[i + 1], ARGV[i + 2]
  local channel = string.sub(key, #KEYS[1] + 2)
  local own = redis.call('HMGET', KEYS[1], 'last:' .. channel, 'floor:' .. channel)
  local last, held = tonumber(own[1]), tonumber(own[2]) or floor
  if not last then redis.call('DEL', key) end
  if tonumber(offset) > (last or -1) then
    redis.call('XADD', key, offset .. '-1', 'd', data)
    local length = redis.call('XLEN', key)
    if last and length == 1 then
      redis.call('HSET', KEYS[1], 'floor:' .. channel, own[1])
    elseif length > tonumber(ARGV[4]) then
      redis.call('XTRIM', key, 'MAXLEN', ARGV[4])
      local first = redis.call('XRANGE', key, '-', '+', 'COUNT', 1)[1][1]
      redis.call('HSET', KEYS[1], 'floor:' .. channel, string.format('%.0f', tonumber(string.match(first, '^%d+')) - 1))
    end
    redis.call('EXPIRE', key, ARGV[6])
    redis.call('HSET', KEYS[1], 'last:' .. channel, offset)
    local before = math.max(last or -1, held, floor)
    redis.call('PUBLISH', key, string.format('%.0f', before) .. ' ' .. offset .. ' ' .. data)
  end
end
redis.call('HSET', KEYS[1], 'reached', ARGV[3])
redis.call('EXPIRE', KEYS[1], ARGV[5])
return {'done', tonumber(ARGV[3])}
"""

READ = """
-- KEYS: hash, stream. ARGV: epoch, after ('' for the newest), limit. Returns {} or {reached, floor, last, entries}.
local channel = string.sub(KEYS[2], #KEYS[1] + 2)
local at = redis.call('HMGET', KEYS[1], 'epoch', 'reached', 'floor', 'last:' .. channel, 'floor:' .. channel)
if at[1] ~= ARGV[1] or not at[2] then return {} end
local floor, last, entries = math.max(tonumber(at[3]), tonumber(at[5]) or -1), tonumber(at[4]) or -1, {}
if at[4] and redis.call('EXISTS', KEYS[2]) == 0 then floor = math.max(floor, last) end
if at[4] and tonumber(ARGV[3]) > 0 then
  local above = string.format('%.0f', floor + 1)
  if ARGV[2] == '' then
    entries = redis.call('XREVRANGE', KEYS[2], '+', above, 'COUNT', ARGV[3])
  elseif tonumber(ARGV[2]) >= floor then
    entries = redis.call('XRANGE', KEYS[2], string.format('%.0f', tonumber(ARGV[2]) + 1), '+', 'COUNT', ARGV[3])
  end
end
return {tonumber(at[2]), floor, last, entries}
"""

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[Item]).decode


def place_key(prefix: str, place: Place) -> str:
    return f"{prefix}:{{{place[0]}/{place[1]}}}"


def packed(items: Sequence[Item]) -> bytes:
    """Items as msgpack.

    >>> unpacked(packed([Item("USD", "k", b"{}")]), 7).items
    [Item(entity='USD', key='k', json=b'{}')]
    """
    return _encode(list(items))


def unpacked(data: bytes, offset: int) -> Publication:
    return Publication(offset, _decode(data), size=len(data))


def read_message(message: bytes) -> tuple[int, int, bytes]:
    """Of what was PUBLISHed: the offset of the channel's publication before it (or of the floor), its own, its items."""
    before, offset, data = message.split(b" ", 2)
    return int(before), int(offset), data


def read_entry(entry: tuple[bytes, Sequence[bytes]]) -> Publication:
    id_, (_, data) = entry
    return unpacked(data, int(id_.partition(b"-")[0]))
