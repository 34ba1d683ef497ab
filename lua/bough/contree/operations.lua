--- Operations of a ConTree service: starting, asking, waiting, cancelling, and the processes inside.

local core = require "bough.core"
local errors = require "bough.error"
local wire = require "bough.contree.wire"

local M = {}

local raise = errors.raise

---@class bough.contree.operation
---@field uuid string
---@field kind "instance"|"image_import"
---@field status string
---@field error string?
---@field error_kind string? of services that say it
---@field created_at string
---@field duration number?
---@field image_size number?
---@field image_uuid string?
---@field result_image_uuid string?
---@field metadata table? the request and, as `result`, what the process did
---@field result { image: string?, tag: string? }?

local terminal = { SUCCESS = true, FAILED = true, CANCELLED = true }

--- Whether nothing more happens in this status. One that is unknown is not finished.
---@param status string?
---@return boolean
function M.is_terminal(status) return terminal[status] == true end

--- Whether the state of a process says that it has ended: by its exit code or by its signal.
---@param state { exit_code: number?, signal: number? }?
---@return boolean
function M.has_ended(state)
  if type(state) ~= "table" then return false end
  local code, signal = tonumber(state.exit_code), tonumber(state.signal)
  return (code ~= nil and code ~= -1) or (signal ~= nil and signal > 0)
end

--- The image that an operation has made.
---@param operation bough.contree.operation
---@return string? uuid nil where it kept none
function M.result_image(operation)
  local result = operation.result
  return operation.result_image_uuid or (type(result) == "table" and result.image) or nil
end

--- What the main process did: `metadata.result`, or the shape of old services.
---@param operation bough.contree.operation
---@return { state: table?, resources: table?, stdout: table?, stderr: table? }?
function M.process_result(operation)
  local metadata = operation.metadata
  local result = type(metadata) == "table" and metadata.result
  if type(result) == "table" then return result end
  local old = operation.result
  if type(old) == "table" and old.exit_code then return { state = { exit_code = old.exit_code } } end
  return nil
end

local function path_of(id, ...)
  local parts = { "/operations", wire.escape(id), ... }
  return table.concat(parts, "/")
end

--- What an operation is at. Waits.
---@param api bough.contree.api
---@param id string
---@param opts { inflight: boolean?, op: string?, retry: boolean?, timeout: number?, deadline: number? }?
--- `inflight`: of one that runs, with what it has written so far
---@return bough.contree.operation
---@return number? retry_after seconds, when the service says when to ask next
function M.get(api, id, opts)
  opts = opts or {}
  local op = opts.op or "operations:get"
  local answer = api:call {
    op = op, path = path_of(id), query = { { "inflight", opts.inflight and true or nil } }, retry = opts.retry,
    timeout = opts.timeout, deadline = opts.deadline,
  }
  local operation = answer.json
  if type(operation.status) ~= "string" then
    raise("protocol", op, "%s answers with an operation without a status", api.host)
  end
  if not operation.uuid then operation.uuid = id end
  return operation, wire.retry_after(answer.headers["retry-after"])
end

--- Iterates over operations, newest first as far as the service says. Each step may wait.
---@param api bough.contree.api
---@param filter { status: string?, kind: string?, since: string?, until: string?, number: number?, page: integer?,
---  op: string? }?
---@return fun(): bough.contree.operation?
function M.list(api, filter)
  filter = filter or {}
  return api:pages {
    op = filter.op or "operations:list", path = "/operations", key = "operations", number = filter.number,
    page = filter.page,
    query = { { "status", filter.status }, { "kind", filter.kind }, { "since", filter.since },
      { "until", filter["until"] } },
  }
end

--- Asks for an operation to be cancelled, which happens a little later. Waits.
---@param api bough.contree.api
---@param id string
---@param opts { op: string?, timeout: number?, deadline: number? }?
---@return boolean accepted false when it had already finished
function M.cancel(api, id, opts)
  opts = opts or {}
  local answer = api:call {
    op = opts.op or "operations:cancel", method = "DELETE", path = path_of(id), statuses = { [409] = true },
    timeout = opts.timeout, deadline = opts.deadline,
  }
  return answer.status ~= 409
end

-- The uuid of what was begun: from the body, or from where it is said to be.
local function begun(api, op, answer)
  local uuid = answer.json and answer.json.uuid
  local location = answer.headers.location
  if not uuid and location then uuid = location:gsub("[?#].*$", ""):match "([^/]+)/*$" end
  if type(uuid) ~= "string" or uuid == "" then
    raise("protocol", op, "%s began an operation and does not say which", api.host)
  end
  return uuid
end

--- Starts a run. It is asked for once: when the answer is lost, `transport` or `timeout` is raised, and nobody knows
--- whether the run exists. Waits.
---@param api bough.contree.api
---@param body table InstanceSpawnRequest
---@param opts { op: string?, timeout: number?, deadline: number? }?
---@return string id of the operation
---@return table answer the body of the answer, {} without one
function M.spawn(api, body, opts)
  opts = opts or {}
  local op = opts.op or "operations:spawn"
  local answer = api:call {
    op = op, method = "POST", path = "/instances", json = body, once = true, timeout = opts.timeout,
    deadline = opts.deadline,
  }
  return begun(api, op, answer), answer.json or {}
end

--- Starts an import. Waits.
---@param api bough.contree.api
---@param body table { registry = { url =, credentials =? }, tag =?, timeout =? }
---@param opts { op: string?, timeout: number?, deadline: number? }?
---@return string id of the operation
function M.import(api, body, opts)
  opts = opts or {}
  local op = opts.op or "operations:import"
  local answer = api:call {
    op = op, method = "POST", path = "/images/import", json = body, timeout = opts.timeout, deadline = opts.deadline,
  }
  return begun(api, op, answer)
end

local POLLS = { 0.1, 0.2, 0.5, 1, 2, 5 }

--- Asks again and again until an operation has finished: as often as the service wants, else less and less often.
--- Waits.
---@param api bough.contree.api
---@param id string
---@param opts { op: string?, deadline: number?, on_poll: fun(operation: bough.contree.operation)? }?
--- `deadline`: an instant of `core.now`, after which `timeout` is raised
---@return bough.contree.operation
function M.wait(api, id, opts)
  opts = opts or {}
  local op = opts.op or "operations:wait"
  local count = 0
  while true do
    local operation, after = M.get(api, id, { op = op, deadline = opts.deadline })
    if terminal[operation.status] then return operation end
    if opts.on_poll then opts.on_poll(operation) end
    count = math.min(count + 1, #POLLS)
    local seconds = after or POLLS[count]
    seconds = math.max(seconds, POLLS[1])
    local left = (opts.deadline or math.huge) - core.now()
    if left <= seconds then
      if left > 0 then core.sleep(left) end
      raise("timeout", op, "operation %s is still %s", id, operation.status)
    end
    core.sleep(seconds)
  end
end

-- Processes inside ---------------------------------------------------------------------------------

--- Starts a process in a running operation. It is asked for once, as `spawn`. Waits.
---@param api bough.contree.api
---@param id string
---@param body table ExecSpec
---@param opts { op: string?, timeout: number?, deadline: number? }?
---@return integer spid
function M.subprocess(api, id, body, opts)
  opts = opts or {}
  local op = opts.op or "operations:subprocess"
  local answer = api:call {
    op = op, method = "POST", path = path_of(id, "subprocesses"), json = body, expect = "object", once = true,
    timeout = opts.timeout, deadline = opts.deadline,
  }
  local spid = math.tointeger(answer.json.spid)
  if not spid or spid < 1 then raise("protocol", op, "%s started a process and does not say which", api.host) end
  return spid
end

--- What a process has done so far: `state`, `resources`, `stdout`, `stderr`. Waits.
---@param api bough.contree.api
---@param id string
---@param spid integer
---@param opts { op: string?, retry: boolean?, timeout: number?, deadline: number? }?
---@return table InstanceResult
function M.subprocess_result(api, id, spid, opts)
  opts = opts or {}
  return api:call({
    op = opts.op or "operations:subprocess_result", path = path_of(id, "subprocesses", ("%d"):format(spid)),
    retry = opts.retry, timeout = opts.timeout, deadline = opts.deadline,
  }).json
end

--- Sends a signal to a process. Waits.
---@param api bough.contree.api
---@param id string
---@param spid integer
---@param name string "TERM"
---@param opts { op: string?, timeout: number?, deadline: number? }?
---@return boolean sent false when it had already ended
function M.signal(api, id, spid, name, opts)
  opts = opts or {}
  local answer = api:call {
    op = opts.op or "operations:signal", method = "DELETE", path = path_of(id, "subprocesses", ("%d"):format(spid)),
    query = { { "signal", name } }, statuses = { [409] = true }, timeout = opts.timeout, deadline = opts.deadline,
  }
  return answer.status ~= 409
end

--- How much of its input a process is sent at once, at most.
M.stdin_bytes = 512 << 10

--- Sends a process input, at most `stdin_bytes`, and its end. Calls for one process must come one after another. It is
--- sent once: after `transport` or `timeout` nobody knows whether the process has got it. Waits.
---@param api bough.contree.api
---@param id string
---@param spid integer
---@param data string
---@param close boolean? nothing follows
---@param opts { op: string?, timeout: number?, deadline: number?, retry: boolean? }? retry: it may be sent twice
---@return boolean taken false when the process has ended or its input was closed
function M.stdin(api, id, spid, data, close, opts)
  opts = opts or {}
  local body = wire.stream(data)
  body.close = close == true
  local answer = api:call {
    op = opts.op or "operations:stdin", method = "POST",
    path = path_of(id, "subprocesses", ("%d"):format(spid), "stdin"), json = body, statuses = { [409] = true },
    once = true, retry = opts.retry, timeout = opts.timeout, deadline = opts.deadline,
  }
  return answer.status ~= 409
end

return M
