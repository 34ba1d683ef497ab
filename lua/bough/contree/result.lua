--- How a command on the service has ended: from its records to a `bough.result`, or an error.

local core = require "bough.core"
local errors = require "bough.error"
local wire = require "bough.contree.wire"

local M = {}

local KILL = 9

--- States of an operation that never change again.
M.terminal = { SUCCESS = true, FAILED = true, CANCELLED = true }

-- Kinds that a failed operation may be of: not those that tell about who waits, or need a result.
local kinds = {}
for _, kind in ipairs(core.kinds) do kinds[kind] = true end
for _, kind in ipairs { "cancelled", "timeout", "exit", "disposed" } do kinds[kind] = nil end

-- A count from the service; -1 stands for one that is not known.
local function count(value)
  local whole = math.tointeger(value)
  return whole and whole > 0 and whole or 0
end

local function seconds(value)
  return type(value) == "number" and value > 0 and value + 0.0 or 0.0
end

-- exit_code, signal and timed_out as the shell tells them. nil while it runs.
local function ending(code, signal, timed_out)
  code, signal = math.tointeger(code), math.tointeger(signal)
  if timed_out then return 128 + KILL, KILL end
  if signal and signal > 0 then return 128 + signal, signal end
  if code and code >= 0 then return code end
  return nil
end

local function made(code, signal, timed_out, times)
  return {
    exit_code = code, signal = signal, timed_out = timed_out, oom = times.oom, ok = code == 0,
    elapsed_time = times.elapsed, user_time = times.user, system_time = times.system, max_rss = times.rss,
    truncated = {},
    resources = { user_time = times.user, system_time = times.system, max_rss = times.rss },
  }
end

-- What was kept of a stream, cut at `limit`, and how much was dropped: 1 where the service tells no number.
local function output(repr, dropped, limit)
  local bytes = wire.bytes(repr)
  if dropped == 0 and type(repr) == "table" and repr.truncated == true then dropped = 1 end
  if limit and #bytes > limit then
    dropped = dropped + #bytes - limit
    bytes = bytes:sub(1, limit)
  end
  return bytes, dropped > 0 and dropped or nil
end

---@class bough.contree.wanted what of a result its caller wants
---@field stdout boolean?
---@field stderr boolean?
---@field limit integer? bytes kept of each stream
---@field dropped { stdout: integer?, stderr: integer? }? by the service, as its events have told

--- From an InstanceResult, as operations and subprocesses have it.
---@param record table?
---@param wanted bough.contree.wanted? default: both streams, as they are
---@return bough.result? result nil while it runs
function M.of_record(record, wanted)
  local state = type(record) == "table" and type(record.state) == "table" and record.state or nil
  local exit_code = state and state.exit_code or type(record) == "table" and record.exit_code -- before it had a state
  local timed_out = state ~= nil and state.timed_out == true
  local code, signal = ending(exit_code, state and state.signal, timed_out)
  if not code then return nil end
  local used = type(record.resources) == "table" and record.resources or {}
  local result = made(code, signal, timed_out, {
    oom = state ~= nil and state.oom == true, elapsed = seconds(used.elapsed_time or used.monotonic_time),
    user = seconds(used.user_cpu_time), system = seconds(used.system_cpu_time), rss = count(used.max_rss) * 1024,
  })
  wanted = wanted or { stdout = true, stderr = true }
  local dropped = wanted.dropped or {}
  for _, name in ipairs { "stdout", "stderr" } do
    if wanted[name] then
      result[name], result.truncated[name] = output(record[name], dropped[name] or 0, wanted.limit)
    end
  end
  return result
end

--- The result of an operation of kind `instance`.
---@param operation table
---@param wanted bough.contree.wanted?
---@return bough.result? nil where it has none
function M.of_operation(operation, wanted)
  local metadata = type(operation.metadata) == "table" and operation.metadata or {}
  local record = metadata.result
  if type(record) ~= "table" and type(operation.result) == "table" then record = operation.result end
  return M.of_record(record, wanted)
end

--- From the data of an `exit` event; without outputs.
---@param data table
---@param late boolean? a time limit of ours has ended it
---@return bough.result
function M.of_exit(data, late)
  local code, signal = ending(data.code, data.signal, late or data.timed_out == true)
  local used = type(data.resources) == "table" and data.resources or {}
  -- a process that has ended without a code, and by no signal, is told as nothing else could have ended it
  return made(code or 128 + KILL, code and signal or not code and KILL or nil, late or data.timed_out == true, {
    oom = data.oom == true, elapsed = count(data.duration_ms) / 1000, user = count(used.user_time_us) / 1e6,
    system = count(used.sys_time_us) / 1e6, rss = count(used.max_rss_kb) * 1024,
  })
end

--- Of a process that has gone down with its sandbox.
---@param timed_out boolean
---@param elapsed number
---@return bough.result
function M.killed(timed_out, elapsed)
  return made(128 + KILL, KILL, timed_out, { oom = false, elapsed = elapsed, user = 0.0, system = 0.0, rss = 0 })
end

--- Where the image is that an operation has made.
---@param operation table
---@return string? uuid in lower case
function M.image_of(operation)
  local uuid = operation.result_image_uuid
  if uuid == nil and type(operation.result) == "table" then uuid = operation.result.image end
  return wire.is_uuid(uuid) and uuid:lower() or nil
end

local function one_line(text)
  text = tostring(text):gsub("%s+$", ""):gsub("%s*[\r\n]+%s*", "; "):gsub("%c", " ")
  return #text > 500 and text:sub(1, 497) .. "..." or text
end

--- What an operation has failed with; nil for one that has succeeded.
---@param operation table
---@param op string?
---@return bough.error?
function M.failure_of(operation, op)
  local text = operation.error
  if type(text) == "table" then text = text.error or text.message end
  if operation.status == "CANCELLED" then
    return errors.new("closed", op, { operation = operation.uuid }, "%s", text ~= nil and text ~= ""
      and "the service has cancelled it: " .. one_line(text) or "it was cancelled at the service")
  elseif operation.status ~= "FAILED" then
    return nil
  end
  local kind = kinds[operation.error_kind] and operation.error_kind or "api"
  return errors.new(kind, op, { operation = operation.uuid }, "%s",
    text ~= nil and text ~= "" and one_line(text) or "the service has failed at it, and does not say why")
end

return M
