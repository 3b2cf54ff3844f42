#!lua flags=allow-oom
-- Reads tags' versions and entries at one moment, and opens the tags that have no version, unless a
-- write is in flight: whoever looks is about to fill. Answers what it read, and the versions it set.
-- KEYS: a version, or a version and an entry under it, again and again; of one tag alone in a Cluster.
-- ARGV: fresh version, its time to live in ms, how many keys there are to a tag: 1 or 2.
local found = redis.call('MGET', unpack(KEYS))
local now
for i = 1, #KEYS, ARGV[3] do
  if not found[i] then
    if not now then
      -- The deadlines were set by this server's clock too, so no two clocks are ever compared.
      local time = redis.call('TIME')
      now = time[1] * 1000 + math.floor(time[2] / 1000)
    end
    local writers = string.sub(KEYS[i], 1, -#'version' - 1) .. 'writers'
    redis.call('ZREMRANGEBYSCORE', writers, '-inf', now)
    if redis.call('EXISTS', writers) == 0 then
      redis.call('SET', KEYS[i], ARGV[1], 'PX', ARGV[2])
      found[i] = ARGV[1]
    end
  end
end
return found
