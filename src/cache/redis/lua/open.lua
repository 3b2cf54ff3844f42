#!lua
-- Opens a tag: answers its version, or sets the fresh one, unless a write is in flight: then nil.
-- KEYS: version, writers. ARGV: fresh version, time to live in ms.
local version = redis.call('GET', KEYS[1])
if version then
  return version
end
-- The deadlines were set by this server's clock too, so no two clocks are ever compared.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now)
if redis.call('EXISTS', KEYS[2]) == 1 then
  return false
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return ARGV[1]
