--- Live processes: from a checked spec to a process object.

local core = require "bough.core"
local errors = require "bough.error"

local M = {}

--- What of a process's spec belongs to the sandbox around it.
---@param spec table
---@param automatic boolean? it ends with its last process
---@return table spec for a driver's `boot`
function M.sandbox_of(spec, automatic)
  return {
    hostname = spec.hostname, network = spec.network, limits = spec.limits, tag = spec.tag,
    disposable = spec.disposable, files = spec.files, automatic = automatic, command = spec.command,
  }
end

--- Starts a process. Waits until it runs, unless `spec.eager`: then `wait` tells what was wrong with it.
---@param place table a sandbox's handle, or whatever else has `exec(spec) -> child`
---@param spec table what `options.spec` gave
---@param policy { check: boolean }
---@param op string for messages
---@param settle (fun(): bough.image?)? called once after its end by whoever waits: waits for what comes of it
---@return bough.process
function M.start(place, spec, policy, op, settle)
  local good, child = pcall(place.exec, place, spec)
  if not good then
    if errors.is(child) then child.op = op end
    error(child, 0)
  end
  if not spec.eager then
    local problem
    good, problem = pcall(child.started, child)
    if not good then
      child:close()
      if errors.is(problem) and problem.op == nil then problem.op = op end
      error(problem, 0)
    end
  end
  -- Functions are called by whoever waits for the process; who only reads another of its streams would wait for ever.
  if type(spec.stdin) == "function" or type(spec.stdout) == "function" or type(spec.stderr) == "function" then
    core.spawn(pcall, child.wait, child) -- what a function raises, `wait` of the process raises
  end
  local stdin, stdout, stderr = child:streams()
  return core.process(child, {
    stdin = stdin, stdout = stdout, stderr = stderr, command = spec.command, check = policy.check,
    settle = settle, op = op, timeout = spec.timeout,
  })
end

--- One command in a sandbox of its own as a run: what `wait` and `close` of a run do.
---@param sandbox table
---@param spec table
---@return { wait: fun(): table, close: fun() }
function M.run(sandbox, spec)
  local child = sandbox:exec(spec)
  return {
    wait = function()
      local result = child:wait()
      return sandbox:wait() or { result = result }
    end,
    close = function()
      child:close()
      sandbox:close()
    end,
  }
end

return M
