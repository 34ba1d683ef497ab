-- luacheck: globals uuid null json
-- A ConTree service in miniature, for spec/support/contree_stub.lua: `stub:handle(<this text>)`.
--
-- Commands are words separated by ";":
--   out TEXT, err TEXT     write a line
--   cat                    writes what comes in, until that ends
--   read                   waits until the input ends
--   wait                   goes on until it is killed
--   pause SECONDS
--   dropped STREAM N       tells that so many bytes were cut off
--   exit N                 ends; the end of the line is exit 0
--   late                   ends as if a time limit had ended it
--   fail KIND TEXT         the operation itself fails
-- Others: `missing` cannot be started; "read -r _ || :" waits until the input ends.
--
-- What is wrong on purpose is told by names in env: SPAWN = "429 429", "lost", "500": what becomes of the requests to
-- start it, one after another; "slow": the answer takes a while. EVENTS = "none": there is no such route. CANCEL =
-- "slow": it takes a second; "never"; "late". IMAGE = "result": where the image is told of. FORGET = "1": the events
-- tell nothing of its end. STDIN = "lost": answers to input are. For sandboxes, which have no env, the host name says
-- it: "no-events".

local function new_process(op, spid, request)
  local line = request.command
  if not request.shell and request.args then line = line .. " " .. table.concat(request.args, " ") end
  local process = {
    op = op, spid = spid, words = {}, input = {}, stdout = "", stderr = "", code = -1, signal = -1,
    env = request.env or {}, input_ended = request.stdin == nil or request.stdin.close ~= false,
  }
  if request.stdin and request.stdin.value ~= "" then process.input[1] = request.stdin end
  for word in (line:find "^read %-r" and "read" or line):gmatch "[^;]+" do
    process.words[#process.words + 1] = word:match "^%s*(.-)%s*$"
  end
  return process
end

local function emit(op, spid, kind, data)
  local process = op.processes[spid]
  if kind == "exit" and process and process.env.FORGET then return end
  op.events[#op.events + 1] = {
    id = #op.events, spid = spid, type = kind, data = data, ts = "2026-09-04T12:00:01.5Z",
  }
end

local function record_of(process)
  return {
    state = {
      exit_code = process.code, signal = process.signal, pid = 100 + process.spid, timed_out = process.late or false,
      core_dump = false, stopped = false, continued = false,
    },
    resources = { elapsed_time = 0.5, user_cpu_time = 0.25, system_cpu_time = 0.125, max_rss = 2048 },
    stdout = { value = process.stdout, encoding = "ascii", truncated = process.cut_stdout },
    stderr = { value = process.stderr, encoding = "ascii", truncated = process.cut_stderr },
  }
end

local function finish(op, status, why)
  if op.completed then return end
  op.status, op.error, op.completed = status, why, true
  local keeps = status == "SUCCESS" and not op.request.disposable
  op.image = keeps and uuid(0x10000 + op.n) or null
  emit(op, 0, "completion", { status = status, duration_ms = 500, result_image_uuid = op.image, error = why or null })
end

local function ended(process, code, signal)
  if process.code ~= -1 or process.signal ~= -1 then return end
  process.code, process.signal = code, signal or -1
  local op = process.op
  emit(op, process.spid, "exit", {
    pid = 100 + process.spid, code = code, signal = process.signal, timed_out = process.late or false,
    duration_ms = 500, resources = { user_time_us = 250000, sys_time_us = 125000, max_rss_kb = 2048 },
  })
  if process.spid ~= 1 then return end
  for _, other in pairs(op.processes) do
    if other ~= process then ended(other, -1, 9) end
  end
  finish(op, "SUCCESS")
end

local function write(process, name, data)
  process[name] = process[name] .. data
  emit(process.op, process.spid, name, { value = data, encoding = "ascii" })
end

-- Goes on until it has to wait. Called for each look at the events, every few milliseconds.
local function step(process, now)
  local op = process.op
  while process.code == -1 and process.signal == -1 and not op.completed do
    local word = process.words[1]
    if not word then return ended(process, 0) end
    local name, rest = word:match "^(%S+)%s*(.*)$"
    if name == "cat" or name == "read" then
      for _, piece in ipairs(process.input) do
        if name == "cat" then
          process.stdout = process.stdout .. piece.value
          emit(op, process.spid, "stdout", piece)
        end
      end
      process.input = {}
      if not process.input_ended then return end
    elseif name == "wait" then
      return
    elseif name == "pause" then
      process.until_ = process.until_ or now + tonumber(rest)
      if now < process.until_ then return end
      process.until_ = nil
    elseif name == "out" then
      write(process, "stdout", rest .. "\n")
    elseif name == "err" then
      write(process, "stderr", rest .. "\n")
    elseif name == "dropped" then
      local stream, count = rest:match "^(%S+) (%d+)$"
      process["cut_" .. stream] = true
      emit(op, process.spid, "truncated", { stream = stream, bytes_emitted = 1, bytes_dropped = tonumber(count) })
    elseif name == "late" then
      process.late = true
      return ended(process, -1, 9)
    elseif name == "fail" then
      op.error_kind = rest:match "^%S+"
      return finish(op, "FAILED", rest:match "^%S+%s+(.*)$")
    elseif name == "exit" then
      return ended(process, tonumber(rest))
    end
    table.remove(process.words, 1)
  end
end

local function run(op, now)
  if op.cancel_at and now >= op.cancel_at then finish(op, "CANCELLED") end
  for _, process in pairs(op.processes) do step(process, now) end
end

local function problem(status, text, kind)
  return { status = status, json = { error = text, status = status, error_kind = kind } }
end

local function spawn(request, state)
  local body = request.json
  local plan = body.env and body.env.SPAWN
  if plan then
    state.plan = state.plan or {}
    local at = (state.plan[plan] or 0) + 1
    state.plan[plan] = at
    local count = 0
    for what in plan:gmatch "%S+" do
      count = count + 1
      if count == at then
        if what == "429" then
          return { status = 429, headers = { ["Retry-After"] = "0.01" }, json = { error = "too many", status = 429 } }
        elseif tonumber(what) then
          return problem(tonumber(what), "no")
        end
      end
      if count == at and what == "lost" then state.lose = true end
      if count == at and what == "slow" then state.slow = true end
    end
  end
  state.n = (state.n or 0) + 1
  local op = { n = state.n, uuid = uuid(state.n), request = body, events = {}, processes = {}, status = "EXECUTING" }
  state.ops[op.uuid] = op
  op.processes[1] = new_process(op, 1, body)
  local running = 0
  for _, other in pairs(state.ops) do running = running + (other.completed and 0 or 1) end
  state.most = math.max(state.most or 0, running)
  if body.command == "missing" then
    op.error_kind = "not_found"
    finish(op, "FAILED", 'cannot run "missing": no such program')
  else
    emit(op, 1, "spawn", { pid = 101, command = body.command, args = {}, shell = body.shell })
  end
  if state.lose then
    state.lose = nil
    return { raw = "" }
  end
  local delay = state.slow and 0.1 or nil
  state.slow = nil
  return {
    status = 201, json = { uuid = op.uuid }, headers = { Location = "/v1/operations/" .. op.uuid }, delay = delay,
  }
end

local function events_of(op, from, now)
  local at = from
  return setmetatable({}, { __index = function()
    run(op, now())
    local event = op.events[at + 2]
    if event then
      at = at + 1
      return ("id: %d\nevent: %s\ndata: %s\n\n"):format(event.id, event.type, json(event))
    end
    if op.completed then return nil end
    return 0.002
  end })
end

local function operation_of(op)
  local process = op.processes[1]
  return {
    uuid = op.uuid, kind = "instance", status = op.status, error = op.error, error_kind = op.error_kind,
    created_at = "2026-09-04T12:00:00.125Z", duration = 0.5, image_size = 1234, image_uuid = op.request.image,
    result_image_uuid = (op.request.env or {}).IMAGE ~= "result" and op.image or nil, result = { image = op.image },
    metadata = {
      command = op.request.command, image = op.request.image,
      result = op.completed and op.status == "SUCCESS" and record_of(process) or nil,
    },
  }
end

local function subprocess(request, op, rest)
  local spid, input = rest:match "^/(%d+)(/?.*)$"
  if not spid then
    if op.completed then return problem(409, "the operation is over") end
    if request.json.command == "missing" then
      return problem(404, 'cannot run "missing": no such program', "not_found")
    end
    local lost = (request.json.env or {}).SPAWN == "lost"
    local number = #op.processes + 1
    op.processes[number] = new_process(op, number, request.json)
    emit(op, number, "spawn", { pid = 100 + number, command = request.json.command, args = {}, shell = false })
    if lost then return { raw = "" } end
    return { status = 201, json = { spid = number } }
  end
  local process = op.processes[tonumber(spid)]
  if not process then return problem(404, "no such process") end
  if request.method == "GET" then return { json = record_of(process) } end
  if process.code ~= -1 or process.signal ~= -1 then return problem(409, "the process has ended") end
  if request.method == "DELETE" then
    local numbers = { KILL = 9, TERM = 15, USR1 = 10 }
    ended(process, -1, numbers[request.params.signal] or 1)
    return { status = 202 }
  elseif input == "/stdin" then
    if process.input_ended then return problem(409, "its input has ended") end
    if process.env.STDIN == "lost" then return { raw = "" } end
    if request.json.value ~= "" then process.input[#process.input + 1] = request.json end
    process.input_ended = request.json.close
    return { status = 202 }
  end
end

return function(request, state)
  state.ops = state.ops or {}
  local function now() return require("luv").hrtime() / 1e9 end
  local path = request.path
  if path == "/most" then -- how many operations ran at once
    return { json = { most = state.most } }
  elseif path == "/whoami" then
    return { json = {
      token_uuid = uuid(1), token_expiration = 1990000000, permissions = { spawn = true, import = false },
      limits = { instance_max_timeout = 3600, instance_max_concurrency = state.cap or 3 }, operations_stat = {},
    } }
  elseif path == "/instances" then
    return spawn(request, state)
  elseif path:find "^/images/" then
    return { json = { uuid = path:match "^/images/([^/]+)", tag = request.json and request.json.tag or null } }
  elseif path:find "^/inspect/[^/]+/download" then
    return { body = request.params.path == "/etc/passwd"
      and "root:x:0:0:root:/root:/bin/sh\njane:x:1000:1001::/home/jane:/bin/sh\n" or "root:x:0:\nstaff:x:50:jane\n" }
  elseif path:find "^/inspect/[^/]+/$" then
    return { json = { uuid = path:match "^/inspect/([^/]+)/", tag = "base", created_at = "2026-09-04T12:00:00Z" } }
  elseif path == "/inspect/" then
    return { status = 302, headers = { Location = uuid(0xabc) .. "/" } }
  end
  local id, rest = path:match "^/operations/([^/]+)(/?.*)$"
  local op = id and state.ops[id]
  if not op then return problem(404, "no such operation") end
  local env = op.request.env or {}
  run(op, now())
  if rest == "" and request.method == "DELETE" then
    if op.completed then return problem(409, "operation is not cancellable") end
    if env.CANCEL == "late" then -- it ends by itself at this very moment
      for _, process in pairs(op.processes) do process.words = { "exit 0" } end
      run(op, now())
      return problem(409, "operation is not cancellable")
    elseif env.CANCEL ~= "never" then
      op.cancel_at = now() + (env.CANCEL == "slow" and 1 or 0)
      run(op, now())
    end
    return { status = 202 }
  elseif rest == "" then
    return { json = operation_of(op) }
  elseif rest == "/events" then
    if env.EVENTS == "none" or op.request.hostname == "no-events" then return problem(404, "no such route") end
    local last = tonumber(request.headers["last-event-id"] or -1)
    return { pieces = events_of(op, last, now) }
  end
  return subprocess(request, op, rest:match "^/subprocesses(.*)$")
end
