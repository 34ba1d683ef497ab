--- /operations/{id}/subprocesses: the processes of a run that is under way.

local auth = require "bough.serve.auth"
local body = require "bough.serve.body"
local errors = require "bough.error"
local fold = require "bough.serve.fold"
local http = require "bough.serve.http"
local record = require "bough.serve.record"
local validate = require "bough.serve.validate"

local M = {}

local MOMENT = 1 -- seconds in which a run may begin

local JSON = "application/json"

local problem = http.fail

local function spid_of(text)
  local spid = #text < 16 and text:find "^%d+$" and math.tointeger(tonumber(text))
  if not spid then problem(404, ("no process %s"):format(errors.quote(text)), { kind = "not_found" }) end
  return spid
end

local function unknown(id, spid)
  problem(404, ("operation %s has no process %d"):format(id, spid), { kind = "not_found" })
end

local function early() problem(425, "the sandbox is still starting", { kind = "busy", retry_after = 1 }) end

local function over() problem(409, "the operation has ended", { kind = "closed" }) end

-- The sandbox of a run that is under way.
local function sandbox_of(app, id)
  local live = app.operations:find(id)
  if not live or live.over then over() end
  if live.kind ~= "instance" then problem(409, "an import has no processes", { kind = "state" }) end
  local sandbox = live.sandbox
  -- most begin within milliseconds, which is less than a client would wait before it asks again
  if not sandbox or not sandbox:settled(MOMENT) then early() end
  return sandbox
end

-- The same for whoever is to change something there: it stays in the image of a run that leaves one.
local function changing(app, request, id)
  local sandbox = sandbox_of(app, id)
  if not sandbox.spec.disposable then auth.demand(request.token, "spawn") end
  return sandbox
end

-- A process that runs.
local function process_of(app, request, id, text)
  local spid = spid_of(text)
  local sandbox = changing(app, request, id)
  local process = sandbox.processes[spid]
  if not process then
    if spid < 1 or spid > sandbox.last_spid then unknown(id, spid) end
    problem(409, ("process %d has ended"):format(spid), { kind = "closed" })
  end
  return process, spid
end

local starting = { not_found = 404, invalid = 400, denied = 422, unsupported = 422, closed = 409, busy = 409 }

--- Starts one more process. Waits until it runs.
function M.create(app, request, id)
  changing(app, request, id)
  local spec = body.exec(request)
  local sandbox = changing(app, request, id)
  local good, why = sandbox:hosts()
  if why == "over" then over() end
  if not good then
    problem(429, "the operation has too many processes", { kind = "resource", retry_after = 1 })
  end
  local started, spid = pcall(sandbox.start, sandbox, spec)
  if not started then
    local status = errors.is(spid) and starting[spid.kind]
    if not status then error(spid, 0) end
    problem(status, spid.message, { kind = spid.kind })
  end
  request:reply(201, { spid = spid })
end

--- What is known of a process, at any time.
function M.result(app, request, id, text)
  local spid = spid_of(text)
  local live, row = app.operations:find(id)
  if live and live.kind == "instance" and not live.over then sandbox_of(app, id) end
  local process = live and live.sandbox and live.sandbox.processes[spid]
  if process then return request:send(200, JSON, record.encode(process:result())) end
  if row and spid == 1 and row.kind == "instance" and row.result then return request:send(200, JSON, row.result) end
  local uuid = live and live.uuid or row.uuid
  if live and live.log then pcall(live.log.sync, live.log) end
  local result = spid > 0 and fold.result(app.journal, uuid, spid)
  if not result then unknown(id, spid) end
  request:send(200, JSON, record.encode(result))
end

local signal_params = { signal = { "string", max = 32, default = "TERM" } }

--- Sends a signal.
function M.signal(app, request, id, text)
  local params = validate.params(request.params, signal_params)
  local signal = params.signal
  local number = #signal < 4 and signal:find "^%d+$" and math.tointeger(tonumber(signal))
  if number and (number < 1 or number > 64) then
    problem(400, ("there is no signal %d"):format(number), { kind = "invalid" })
  end
  local process, spid = process_of(app, request, id, text)
  if process.ending then problem(409, ("process %d has ended"):format(spid), { kind = "closed" }) end
  process:signal(number or signal)
  request:reply(202)
end

--- Writes to a process's stdin. Answers when its pipe has taken all of it.
function M.stdin(app, request, id, text)
  process_of(app, request, id, text)
  local bytes, close = body.stdin(request)
  request:cancel_when_gone() -- nobody is there to be told how much was taken
  process_of(app, request, id, text):write(bytes, close)
  request:reply(202)
end

return M
