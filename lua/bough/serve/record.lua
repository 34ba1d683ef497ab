--- What the server says of processes and operations: the shapes of the protocol, as tables and as JSON text.

local httpd = require "bough.httpd"
local json = require "bough.json"
local wire = require "bough.contree.wire"

local M = {}

--- A counter that nobody has kept.
local UNKNOWN = -1

local KILL = 9

--- JSON of a value.
---@type fun(value: any): string
M.encode = httpd.json

--- An object's JSON with more members behind the others.
---@param object string JSON of an object
---@param more string JSON of members, without braces: '"a":1'
---@return string
function M.extend(object, more)
  if object == "{}" then return "{" .. more .. "}" end
  return object:sub(1, -2) .. "," .. more .. "}"
end

local function round(seconds) return math.floor(seconds * 1e6 + 0.5) / 1e6 end

--- Seconds as whole microseconds, as clocks of the protocol have them.
---@param seconds number
---@return number
function M.seconds(seconds) return round(seconds) end

-- -- how a process ended ------------------------------------------------------------------------------------

---@class bough.serve.ending how a process ended, in the protocol's terms
---@field code integer -1 after a signal
---@field signal integer -1 for none
---@field timed_out boolean
---@field oom boolean
---@field elapsed number seconds
---@field user number
---@field system number
---@field max_rss integer KiB
---@field core_dump boolean
---@field used table<string, integer> counters as `counters` names them

-- Counters of a result, in resources of results and of `exit` events. -1 where nobody has counted.
local counters = {
  { "minor_faults", "page_faults", "minor_faults" }, { "major_faults", "page_faults_io", "major_faults" },
  { "blocks_in", "block_input", "block_input_ops" }, { "blocks_out", "block_output", "block_output_ops" },
  { "waits", "voluntary_switches", "voluntary_ctx_switches" },
  { "preemptions", "involuntary_switches", "involuntary_ctx_switches" },
}

local function counted(from, column)
  local used = {}
  for _, names in ipairs(counters) do used[names[1]] = math.tointeger(from[names[column]]) or UNKNOWN end
  return used
end

local function with_counters(resources, used, column)
  for _, names in ipairs(counters) do resources[names[column]] = used and used[names[1]] or UNKNOWN end
  return resources
end

--- The ending that a result tells.
---@param result bough.result? nil for a process that was lost with its sandbox
---@return bough.serve.ending
function M.ending(result)
  if not result then
    return {
      code = -1, signal = KILL, timed_out = false, oom = false, elapsed = 0, user = 0, system = 0, max_rss = UNKNOWN,
      core_dump = false, used = counted({}, 1),
    }
  end
  local signal = result.signal or result.timed_out and KILL or nil
  return {
    code = signal and -1 or result.exit_code, signal = signal or -1, timed_out = result.timed_out, oom = result.oom,
    elapsed = round(result.elapsed_time), user = round(result.user_time), system = round(result.system_time),
    max_rss = result.max_rss // 1024, core_dump = result.resources.core_dump or false,
    used = counted(result.resources, 1),
  }
end

--- The data of an `exit` event.
---@param pid integer
---@param ending bough.serve.ending
---@return table
function M.exit(pid, ending)
  return {
    pid = pid, code = ending.code, signal = ending.signal, core_dump = ending.core_dump, timed_out = ending.timed_out,
    oom = ending.oom, duration_ms = math.floor(ending.elapsed * 1000 + 0.5),
    resources = with_counters({
      user_time_us = math.floor(ending.user * 1e6 + 0.5), sys_time_us = math.floor(ending.system * 1e6 + 0.5),
      max_rss_kb = ending.max_rss,
      -- Linux keeps none of these
      shared_memory = 0, unshared_memory = 0, swaps = 0, ipc_msgs_sent = 0, ipc_msgs_received = 0,
      signals_received = 0,
    }, ending.used, 3),
  }
end

--- The ending that the data of an `exit` event tells.
---@param data table
---@return bough.serve.ending
function M.ending_of_exit(data)
  local used = data.resources
  return {
    code = math.tointeger(data.code), signal = math.tointeger(data.signal), timed_out = data.timed_out, oom = data.oom,
    elapsed = data.duration_ms / 1000, user = used.user_time_us / 1e6, system = used.sys_time_us / 1e6,
    max_rss = math.tointeger(used.max_rss_kb), core_dump = data.core_dump, used = counted(used, 3),
  }
end

---@class bough.serve.output what a process has written
---@field stdout string
---@field stderr string
---@field truncated { stdout: boolean?, stderr: boolean? }

local function stream(output, name)
  local shown = wire.stream(output[name])
  shown.truncated = output.truncated[name] or false
  return shown
end

--- An InstanceResult.
---@param pid integer
---@param ending bough.serve.ending? nil while it runs
---@param output bough.serve.output
---@param elapsed number? seconds, of one that runs
---@return table
function M.result(pid, ending, output, elapsed)
  local e = ending or { code = -1, signal = -1, timed_out = false, oom = false, core_dump = false }
  local passed = e.elapsed or elapsed and round(elapsed) or UNKNOWN
  return {
    state = {
      exit_code = e.code, signal = e.signal, pid = pid, timed_out = e.timed_out, oom = e.oom, core_dump = e.core_dump,
      stopped = false, continued = false,
    },
    resources = with_counters({
      elapsed_time = passed, monotonic_time = passed, user_cpu_time = e.user or UNKNOWN,
      system_cpu_time = e.system or UNKNOWN, max_rss = e.max_rss or UNKNOWN, cost = 0.0,
      shared_memory = 0, unshared_memory = 0, swaps = 0, signals = 0,
    }, e.used, 2),
    stdout = stream(output, "stdout"), stderr = stream(output, "stderr"),
  }
end

-- -- operations -----------------------------------------------------------------------------------------------

local function or_null(value)
  if value == nil then return json.null end
  return value
end

---@class bough.serve.facts what is known of an operation
---@field uuid string
---@field kind "instance"|"image_import"
---@field status string
---@field created number seconds since the epoch
---@field duration number seconds
---@field error string?
---@field error_kind bough.error_kind?
---@field image string? uuid
---@field result_image string? uuid
---@field tag string?
---@field image_size integer?
---@field consumed_cpu number?
---@field consumed_memory integer?

--- An OperationSummary.
---@param facts bough.serve.facts
---@param status string? instead of the facts'
---@return string JSON
function M.summary(facts, status)
  return M.encode {
    uuid = facts.uuid, kind = facts.kind, status = status or facts.status, error = or_null(facts.error),
    error_kind = facts.error_kind, created_at = wire.rfc3339(facts.created), duration = round(facts.duration),
    image_size = facts.image_size or 0, consumed_cpu = facts.consumed_cpu or 0,
    consumed_memory = facts.consumed_memory or 0, image_uuid = or_null(facts.image),
    result_image_uuid = or_null(facts.result_image),
  }
end

--- What an operation has made, as its response tells.
---@param image string? uuid
---@param tag string?
---@return string JSON
function M.made(image, tag)
  if not image then return "null" end
  return M.encode { image = image, tag = or_null(tag) }
end

--- The OperationResponse of a run.
---@param summary string JSON, as are the others
---@param metadata string without the result of the process
---@param result string? an InstanceResult
---@param image string? uuid of what was made
---@return string
function M.instance(summary, metadata, result, image)
  metadata = M.extend(metadata, '"result":' .. (result or "null"))
  return M.extend(summary, '"metadata":' .. metadata .. ',"result":' .. M.made(image))
end

--- The OperationResponse of anything else.
---@param summary string JSON, as are the others
---@param metadata string
---@param made string?
---@return string
function M.other(summary, metadata, made)
  return M.extend(summary, '"metadata":' .. metadata .. ',"result":' .. (made or "null"))
end

return M
