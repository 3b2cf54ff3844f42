#!lua flags=allow-oom
-- Closes tags for a write: notes the write as in flight, drops the versions and the entries.
-- Memory that has run out must not keep a write from invalidating, hence the flag.
-- Answers for each tag how many entries its index held; below zero if they were detached, to be
-- dropped later.
-- KEYS: of all tags the versions, then the writers, the indexes, and the names to detach these under;
-- of one tag alone in a Cluster.
-- ARGV: the write or '' for none, its deadline in ms from now, how many entries to drop at once in
-- all, time to live in ms.
local tags = #KEYS / 4
redis.call('DEL', unpack(KEYS, 1, tags))
if ARGV[1] ~= '' then
  local time = redis.call('TIME')
  local now = time[1] * 1000 + math.floor(time[2] / 1000)
  for i = tags + 1, 2 * tags do
    redis.call('ZADD', KEYS[i], now + ARGV[2], ARGV[1])
    redis.call('PEXPIRE', KEYS[i], ARGV[2])
  end
end
local any = redis.call('EXISTS', unpack(KEYS, 2 * tags + 1, 3 * tags)) > 0
local room = tonumber(ARGV[3])
local held = {}
for i = 1, tags do
  local index, detached = KEYS[2 * tags + i], KEYS[3 * tags + i]
  held[i] = any and redis.call('SCARD', index) or 0
  if held[i] > room then
    redis.call('RENAME', index, detached)
    redis.call('PEXPIRE', detached, ARGV[4])
    held[i] = -held[i]
  elseif held[i] > 0 then
    room = room - held[i]
    -- An entry's key begins as all keys of its tag do, and ends with its member.
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
