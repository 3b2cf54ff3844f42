#!lua flags=allow-oom
-- Runs every command that the other scripts run, so that a server that refuses one is found before it
-- is used. Names the command that is refused.
-- KEYS: a tag's version, writers, index, a name to detach the index under, an entry.
-- ARGV: the entry's member in the index, time to live in ms.
local version, writers, index, detached, entry = unpack(KEYS)
local member, ttl = unpack(ARGV)
local commands = {
  {'TIME'},
  {'SET', version, member, 'PX', ttl},
  {'SET', entry, member, 'PX', ttl},
  {'MGET', version, entry},
  {'GET', version},
  {'GETRANGE', entry, 0, 1},
  {'STRLEN', entry},
  {'ZADD', writers, 1, member},
  {'PEXPIRE', writers, ttl},
  {'ZCOUNT', writers, '-inf', '+inf'},
  {'ZREMRANGEBYSCORE', writers, '-inf', 0},
  {'ZREM', writers, member},
  {'SADD', index, member},
  {'SRANDMEMBER', index, 1},
  {'SCARD', index},
  {'SMEMBERS', index},
  {'SREM', index, ''},
  {'EXISTS', index},
  {'RENAME', index, detached},
  {'SSCAN', detached, '0', 'COUNT', 1},
  {'UNLINK', index, detached, entry},
  {'DEL', version, writers},
}
for _, command in ipairs(commands) do
  local reply = redis.pcall(unpack(command))
  if type(reply) == 'table' and reply.err then
    return redis.error_reply('ERR ' .. command[1] .. ' failed: ' .. reply.err)
  end
end
return 1
