#!lua flags=allow-oom
-- Closes tags for a write: adds the write to the writers, deletes the versions and the entries.
-- Memory that has run out must not keep a write from invalidating, hence the flag.
-- Returns for each tag the number of entries in its index, negative if the index was detached to be
-- reclaimed later.
-- KEYS: the versions of all tags, then their writers, their indexes, and the names to detach the indexes
-- under. In a Cluster one tag only.
-- ARGV: the write or '' for none, its deadline in ms from now, the time to live of the writers in ms,
-- the number of entries to delete at once in total, the time to live of a detached index in ms.
local tags = #KEYS / 4
redis.call('DEL', unpack(KEYS, 1, tags))
if ARGV[1] ~= '' then
  local time = redis.call('TIME')
  local now = time[1] * 1000 + math.floor(time[2] / 1000)
  for i = tags + 1, 2 * tags do
    redis.call('ZADD', KEYS[i], now + ARGV[2], ARGV[1])
    redis.call('PEXPIRE', KEYS[i], ARGV[3])
  end
end
local any = redis.call('EXISTS', unpack(KEYS, 2 * tags + 1, 3 * tags)) > 0
local room = tonumber(ARGV[4])
local held = {}
for i = 1, tags do
  local index, detached = KEYS[2 * tags + i], KEYS[3 * tags + i]
  held[i] = any and redis.call('SCARD', index) or 0
  if held[i] > room then
    redis.call('RENAME', index, detached)
    redis.call('PEXPIRE', detached, ARGV[5])
    held[i] = -held[i]
  elseif held[i] > 0 then
    room = room - held[i]
    -- An entry's key begins like all keys of its tag, and ends with its member.
    local base = string.sub(index, 1, -#'keys' - 1)
    local dead = redis.call('SMEMBERS', index)
    for j, member in ipairs(dead) do
      dead[j] = base .. member
    end
    dead[#dead + 1] = index
    redis.call('UNLINK', unpack(dead))
  end
end
return held
