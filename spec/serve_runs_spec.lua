--- `bough serve`: runs, operations, their events and subprocesses, over HTTP.

local bough = require "bough"
local cjson = require "cjson"
local core = require "bough.core"
local events_module = require "bough.serve.events"
local fixture = require "spec.engine.fixture"
local scratch = require "spec.support.scratch"
local serving = require "spec.support.serving"

local UUID = "^%x%x%x%x%x%x%x%x%-%x%x%x%x%-%x%x%x%x%-%x%x%x%x%-%x%x%x%x%x%x%x%x%x%x%x%x$"
local NOBODY = "00000000-0000-4000-8000-000000000000"

local function encode64(bytes) return core.base64_encode(bytes) end

-- The bytes of a stream object.
local function bytes_of(shown)
  if shown.encoding == "base64" then return assert(core.base64_decode(shown.value)) end
  assert.equal("ascii", shown.encoding)
  return shown.value
end

-- Frames of an event stream, each with `id`, `event` and `data`, and comments as texts.
local function parse(text)
  local events, comments = {}, {}
  for frame in text:gmatch "(.-)\n\n" do
    if frame:sub(1, 1) == ":" then
      comments[#comments + 1] = frame
    else
      local event = { frame = frame, id = math.tointeger(tonumber(frame:match "^id: (%d+)\n")) }
      event.event = frame:match "event: (%S+)"
      event.text = frame:match "data: ([^\n]*)$"
      if event.id then event.data = cjson.decode(event.text) end
      events[#events + 1] = event
    end
  end
  return events, comments
end

local function types(events, spid)
  local all = {}
  for _, event in ipairs(events) do
    if not spid or event.data.spid == spid then all[#all + 1] = event.event end
  end
  return table.concat(all, " ")
end

local function of_type(events, kind, spid)
  for _, event in ipairs(events) do
    if event.event == kind and (not spid or event.data.spid == spid) then return event.data.data, event.data end
  end
end

-- All that a process has written to a stream, from its events.
local function written(events, kind, spid)
  local parts = {}
  for _, event in ipairs(events) do
    if event.event == kind and event.data.spid == spid then parts[#parts + 1] = bytes_of(event.data.data) end
  end
  return table.concat(parts)
end

describe("runs of a server", function()
  local served, busybox
  local live = {} -- uuids of operations that the test at hand has begun

  setup(function()
    served = serving.start { base_path = "/sandboxes", limits = { instance_max_concurrency = 200 } }
    busybox = served:image "busybox"
  end)

  teardown(function() served:stop() end)

  after_each(function()
    for _, uuid in ipairs(live) do served:delete("/operations/" .. uuid) end
    for _, uuid in ipairs(live) do served:finished(uuid) end
    live = {}
  end)

  local function spawn(body, more)
    local all = { image = "tag:busybox" }
    for name, value in pairs(body) do all[name] = value end
    local answer = served:post("/instances", { json = all, token = more and more.token })
    if answer.status == 201 then live[#live + 1] = answer.json.uuid end
    return answer
  end

  local function start(body)
    local answer = spawn(body)
    assert.equal(201, answer.status, answer.body)
    return answer.json.uuid
  end

  local function run(body) return served:finished(start(body)) end

  local function shell(line, more)
    local body = { command = line, shell = true }
    for name, value in pairs(more or {}) do body[name] = value end
    return run(body)
  end

  local function events(uuid, query, headers)
    local answer = served:get(("/operations/%s/events%s"):format(uuid, query or ""),
      { headers = headers, max_bytes = 128 << 20 })
    assert.equal(200, answer.status, answer.body)
    return (parse(answer.body))
  end

  local function operation(uuid, query)
    local answer = served:get("/operations/" .. uuid .. (query or ""))
    return answer.json, answer
  end

  local function process(uuid, spid, query)
    local answer = served:get(("/operations/%s/subprocesses/%d%s"):format(uuid, spid, query or ""))
    return answer.json, answer
  end

  local function subprocess(uuid, body)
    return served:post("/operations/" .. uuid .. "/subprocesses", { json = body })
  end

  local function stdin(uuid, spid, value, close)
    return served:post(("/operations/%s/subprocesses/%d/stdin"):format(uuid, spid),
      { json = { value = value, close = close } }).status
  end

  local function wait_for(uuid, kind, spid)
    return fixture.until_true("the event " .. kind, function()
      local answer = served:get(("/operations/%s/events%s"):format(uuid, spid and "?spid=" .. spid or ""),
        { max_bytes = 64 << 20 })
      return answer.status == 200 and of_type((parse(answer.body)), kind, spid)
    end)
  end

  -- One that ends when its stdin does; it runs when this returns.
  local function gate(more)
    local body = { command = "cat >/dev/null", shell = true, stdin = { value = "", close = false } }
    for name, value in pairs(more or {}) do body[name] = value end
    local uuid = start(body)
    wait_for(uuid, "spawn", 1)
    return uuid
  end

  local function upload(content)
    local headers = { ["Content-Type"] = "application/octet-stream" }
    return served:post("/files", { body = content, headers = headers }).json.uuid
  end

  local function output(finished) return bytes_of(finished.metadata.result.stdout) end

  describe("a run", function()
    it("S23: command and image are enough, and all else has its default", function()
      local answer = spawn { command = "/bin/true" }
      assert.equal(201, answer.status)
      local uuid = answer.json.uuid
      assert.match(UUID, uuid)
      assert.equal("/sandboxes/v1/operations/" .. uuid, answer.headers.location)
      local echo = answer.json
      assert.equal(cjson.null, echo.result)
      assert.equal(cjson.null, echo.stdin)
      for name, value in pairs {
        command = "/bin/true", image = "tag:busybox", shell = false, preserve_env = false, cwd = "", uid = 0, gid = 0,
        disposable = false, hostname = "linuxkit", timeout = 60, truncate_output_at = 1048576,
      } do
        assert.equal(value, echo[name], name)
      end
      assert.is_true(echo.networking.enabled)
      assert.equal(12 << 30, echo.resources_limits.max_layer_bytes)
      assert.match('"args":%[%]', answer.body)
      assert.match('"env":{}', answer.body)
      assert.match('"files":{}', answer.body)
      local finished = served:finished(uuid)
      assert.same({ "SUCCESS", "instance", busybox, uuid, cjson.null },
        { finished.status, finished.kind, finished.image_uuid, finished.uuid, finished.error })
      assert.match("^%d%d%d%d%-%d%d%-%d%dT%d%d:%d%d:%d%d%.%d+Z$", finished.created_at)
      assert.is_true(finished.duration > 0 and finished.consumed_memory > 0)
      assert.equal(0, finished.metadata.result.state.exit_code)
      assert.equal("/bin/true", finished.metadata.command)
      assert.equal("linuxkit\n", output(run { command = "hostname" }))
      assert.equal("/\n0\n0\n", output(shell "pwd; id -u; id -g"))
      assert.equal("0\n", output(shell "wc -c"))
    end)

    it("S24: shell runs through sh -c, without it args are passed untouched", function()
      assert.equal("a b*c\n", output(shell "X='a  b*c'; echo $X"))
      local args = { "%s|", "a  b", "$HOME", "*", "", "-x", "\u{e9}" }
      assert.equal("a  b|$HOME|*||-x|\u{e9}|", output(run { command = "printf", args = args }))
      assert.equal("zero one\n", output(run { command = "echo $0 $1", shell = true, args = { "zero", "one" } }))
      assert.equal("from stdin\n", output(run {
        command = "/bin/sh", shell = true, args = { "-s", "x" }, stdin = { value = "echo from stdin\n" },
      }))
    end)

    it("S25: takes images by tag and by UUID", function()
      assert.equal("SUCCESS", run({ command = "true", image = "tag:busybox" }).status)
      assert.equal("SUCCESS", run({ command = "true", image = busybox }).status)
      assert.equal("SUCCESS", run({ command = "true", image = busybox:upper() }).status)
      for _, image in ipairs { "tag:no/such", NOBODY } do
        local answer = spawn { command = "true", image = image }
        assert.same({ 404, "not_found" }, { answer.status, answer.json.error_kind })
      end
      for _, image in ipairs { "busybox", "", "tag:", "tag:No Tag", 7 } do
        assert.equal(400, spawn({ command = "true", image = image }).status)
      end
    end)

    it("S26: files are there before it starts, with owner and mode, at several paths", function()
      local uuid = upload "content\0of a file"
      local script = upload "#!/bin/sh\necho ran as $(id -u)\n"
      local finished = shell("stat -c '%n %a %u %g' /a/b/c /d /e /run.sh; cat /d; /run.sh", { uid = 5, files = {
        ["/a/b/c"] = { uuid = uuid, mode = "0755", uid = 1000, gid = 1001 },
        ["/d"] = { uuid = uuid:upper() }, ["/e"] = { uuid = uuid, mode = "0o600" },
        ["/run.sh"] = { uuid = script, mode = "755" },
      } })
      assert.equal("/a/b/c 755 1000 1001\n/d 644 0 0\n/e 600 0 0\n/run.sh 755 0 0\ncontent\0of a fileran as 5\n",
        output(finished))
      local kept = served:get("/inspect/" .. finished.result_image_uuid .. "/download?path=/a/b/c")
      assert.equal("content\0of a file", kept.body)
      local function with(files) return spawn({ command = "true", files = files }).status end
      assert.equal(404, with { ["/x"] = { uuid = NOBODY } })
      assert.equal(400, with { ["/x"] = {} })
      assert.equal(400, with { x = { uuid = uuid } })
      assert.equal(400, with { ["/"] = { uuid = uuid } })
      assert.equal(400, with { ["/../x"] = { uuid = uuid } })
      for _, mode in ipairs { "rw", "0o9", "99999", "", 420 } do
        assert.equal(400, with { ["/x"] = { uuid = uuid, mode = mode } })
      end
      assert.equal(400, with { ["/x"] = { uuid = uuid, uid = -1 } })
    end)

    it("S27: stdin is delivered, and ends where it says so", function()
      assert.equal("text\n", output(run { command = "cat", stdin = { value = "text\n" } }))
      local binary = { value = encode64 "a\0\xff", encoding = "base64" }
      assert.equal("a\0\xff", output(run { command = "cat", stdin = binary }))
      local utf8 = { value = "\u{e9}", encoding = "ascii", truncated = false }
      assert.equal("\u{e9}", output(run { command = "cat", stdin = utf8 }))
      local large = ("0123456789abcdef"):rep(40000)
      assert.equal(#large .. "\n", output(run {
        command = "wc -c", shell = true, stdin = { value = encode64(large), encoding = "base64", close = true },
      }))
      assert.equal(400, spawn({ command = "cat", stdin = { value = "!!!", encoding = "base64" } }).status)
      assert.equal(400, spawn({ command = "cat", stdin = {} }).status)
      local uuid = start { command = "cat", stdin = { value = "begin ", close = false } }
      assert.equal(202, stdin(uuid, 1, "end"))
      assert.equal("begin end", output(served:finished(uuid)))
    end)

    it("S28: an exit code is a result, and the status SUCCESS", function()
      local finished = shell "echo out; echo err >&2; exit 3"
      local result = finished.metadata.result
      assert.same({ "SUCCESS", cjson.null, 3, -1 },
        { finished.status, finished.error, result.state.exit_code, result.state.signal })
      assert.same({ "out\n", "err\n" }, { bytes_of(result.stdout), bytes_of(result.stderr) })
      assert.match(UUID, finished.result_image_uuid)
      local state = shell("kill -15 $$").metadata.result.state
      assert.same({ -1, 15, false }, { state.exit_code, state.signal, state.timed_out })
    end)

    it("S29: leaves an image unless it is disposable", function()
      local kept = shell "echo kept >/file"
      assert.match(UUID, kept.result_image_uuid)
      assert.equal(kept.result_image_uuid, kept.result.image)
      assert.equal(cjson.null, kept.result.tag)
      assert.is_true(kept.image_size > 0)
      assert.equal("kept\n", served:get("/inspect/" .. kept.result.image .. "/download?path=/file").body)
      assert.equal("kept\n", output(shell("cat /file", { image = kept.result.image })))
      assert.equal(kept.uuid, served:get("/inspect/" .. kept.result.image .. "/").json.operation_uuid)
      local thrown = shell("echo thrown >/file", { disposable = true })
      assert.equal(cjson.null, thrown.result_image_uuid)
      assert.is_true(thrown.result == cjson.null or thrown.result.image == cjson.null)
      assert.equal("SUCCESS", thrown.status)
    end)

    it("S30: two of one image do not see each other", function()
      local one, two = start { command = "echo 1 >/n; sleep 0.2; cat /n", shell = true },
        start { command = "sleep 0.1; cat /n; echo 2 >/n", shell = true }
      assert.equal("1\n", output(served:finished(one)))
      assert.equal("", output(served:finished(two)))
      assert.equal("", output(shell "cat /n 2>/dev/null"))
    end)

    it("S31: a time limit ends it with all it started, and keeps what it did", function()
      local mark = fixture.long_time()
      local finished = shell(("echo before; echo x >/x; (sleep %s &); sleep %s"):format(mark, mark), { timeout = 1 })
      local result = finished.metadata.result
      assert.same({ "SUCCESS", true, 9, -1 },
        { finished.status, result.state.timed_out, result.state.signal, result.state.exit_code })
      assert.equal("before\n", bytes_of(result.stdout))
      fixture.gone("sleep " .. mark)
      assert.equal("x\n", served:get("/inspect/" .. finished.result.image .. "/download?path=/x").body)
      assert.equal("timeout", of_type(events(finished.uuid), "shutdown").reason)
      assert.is_true(of_type(events(finished.uuid), "exit", 1).timed_out)
      assert.equal(3600, spawn({ command = "true", timeout = 1000000 }).json.timeout)
      for _, timeout in ipairs { 0, -1, 1.5, "60" } do
        assert.equal(400, spawn({ command = "true", timeout = timeout }).status)
      end
    end)

    it("S32: output over the limit is cut exactly there, each stream for itself", function()
      local finished = shell("printf 0123456789abcdef; printf 01234 >&2; head -c 100000 /dev/zero",
        { truncate_output_at = 10 })
      local result = finished.metadata.result
      assert.same({ "0123456789", true, "01234", false },
        { bytes_of(result.stdout), result.stdout.truncated, bytes_of(result.stderr), result.stderr.truncated })
      local all = events(finished.uuid)
      assert.equal("0123456789", written(all, "stdout", 1))
      assert.same({ stream = "stdout", bytes_emitted = 10, bytes_dropped = 100006 }, of_type(all, "truncated"))
      assert.equal("init network spawn truncated exit shutdown completion",
        (types(all):gsub("std%w+ ", "")))
      result = shell("printf 0123456789", { truncate_output_at = 10 }).metadata.result
      assert.is_false(result.stdout.truncated)
      result = shell("echo x", { truncate_output_at = 0 }).metadata.result
      assert.same({ "", true }, { result.stdout.value, result.stdout.truncated })
      for _, limit in ipairs { -1, 10485761, "x" } do
        assert.equal(400, spawn({ command = "true", truncate_output_at = limit }).status)
      end
    end)

    it("S33: text is ascii, all else base64", function()
      local function shown(line) return shell(line).metadata.result.stdout end
      assert.same({ value = "tab\t, cr\r, lf\n", encoding = "ascii", truncated = false },
        shown "printf 'tab\\t, cr\\r, lf\\n'")
      assert.same({ value = "", encoding = "ascii", truncated = false }, shown "true")
      assert.same({ value = "w6k=", encoding = "base64", truncated = false }, shown "printf '\\303\\251'")
      for _, byte in ipairs { "\\000", "\\033", "\\177", "\\200", "\\013" } do
        assert.equal("base64", shown("printf 'a" .. byte .. "'").encoding)
      end
      assert.equal('"quoted" \\ </a>\n', bytes_of(shown [[echo '"quoted" \ </a>']]))
    end)

    it("S34: env reaches it, and with preserve_env those that come after", function()
      local env = { A = "1", B = "two words", ["C"] = "", PATH = "/bin:/usr/bin" }
      assert.equal("1|two words||/bin:/usr/bin\n", output(shell("echo \"$A|$B|$C|$PATH\"", { env = env })))
      local forgotten = shell("true", { env = env })
      assert.equal("||\n", output(shell("echo \"$A|$B|$C\"", { image = forgotten.result.image })))
      local kept = shell("true", { env = env, preserve_env = true })
      assert.equal("1|two words||\n", output(shell("echo \"$A|$B|$C|$X\"", { image = kept.result.image })))
      local more = shell("true", { env = { B = "other", X = "x" }, preserve_env = true, image = kept.result.image })
      assert.equal("1|other|x\n", output(shell("echo \"$A|$B|$X\"", { image = more.result.image })))
      local here = { image = more.result.image, env = { B = "here" } }
      assert.equal("1|here|x\n", output(shell("echo \"$A|$B|$X\"", here)))
      for _, wrong in ipairs { { ["A=B"] = "x" }, { [""] = "x" }, { A = 1 }, { A = "\0" } } do
        assert.equal(400, spawn({ command = "true", env = wrong }).status)
      end
    end)

    it("S35: has no network where that is refused", function()
      local function devices(more) return output(shell("cut -d: -f1 -s /proc/net/dev | tr -d ' \\n'", more)) end
      assert.equal("lo", devices { networking = { enabled = false } })
      assert.equal("lo", devices()) -- this server has none to give
      local all = events(shell("true", { networking = { enabled = false } }).uuid)
      assert.same({ { name = "lo", rx_bytes = 0, rx_packets = 0, rx_errs = 0, rx_drop = 0, tx_bytes = 0, tx_packets = 0,
        tx_errs = 0, tx_drop = 0 } }, of_type(all, "network").interfaces)
    end)

    it("S37: has all fields of state and resources, while it runs too", function()
      local function complete(result)
        for _, name in ipairs {
          "exit_code", "signal", "pid", "timed_out", "core_dump", "stopped", "continued", "oom",
        } do
          assert.is_not_nil(result.state[name], name)
        end
        for _, name in ipairs {
          "elapsed_time", "monotonic_time", "user_cpu_time", "system_cpu_time", "max_rss", "cost", "shared_memory",
          "unshared_memory", "page_faults", "page_faults_io", "swaps", "signals", "block_input", "block_output",
          "voluntary_switches", "involuntary_switches",
        } do
          assert.equal("number", type(result.resources[name]), name)
        end
        for _, name in ipairs { "stdout", "stderr" } do
          assert.equal("string", type(result[name].value))
          assert.equal("boolean", type(result[name].truncated))
        end
      end
      local finished = shell "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done"
      complete(finished.metadata.result)
      complete((process(finished.uuid, 1)))
      assert.is_true(finished.metadata.result.resources.page_faults > 0)
      local used = finished.metadata.result.resources
      assert.is_true(used.user_cpu_time + used.system_cpu_time > 0 and used.max_rss > 100 and used.elapsed_time > 0)
      assert.is_true(math.abs(finished.consumed_cpu - used.user_cpu_time - used.system_cpu_time) < 1e-5)
      local uuid = gate()
      complete((process(uuid, 1)))
      complete(operation(uuid, "?inflight=1").metadata.result)
    end)

    it("runs where and as whom it was told", function()
      assert.equal("/usr\n7\n8\n", output(shell("pwd; id -u; id -g", { cwd = "/usr", uid = 7, gid = 8 })))
      assert.equal("my.host\n", output(shell("hostname", { hostname = "my.host" })))
      local image = served.engine.images:use "busybox":apply_files { ["/w/f"] = bough.bytes "x" }
      local instance <close> = image:boot()
      local made = instance:commit { config = { cwd = "/w", env = { FROM = "image" } } }
      assert.same({ "/w", { FROM = "image" } }, { made.config.cwd, made.config.env })
      assert.equal("/w image\n", output(shell("echo $(pwd) $FROM", { image = made.uuid })))
      assert.equal("/\n", output(shell("pwd", { image = made.uuid, cwd = "/" })))
      for name, value in pairs { cwd = "relative", uid = -1, gid = 4294967295, hostname = "a b", command = "" } do
        local body = { command = "true" }
        body[name] = value
        assert.equal(400, spawn(body).status, name)
      end
    end)

    it("does not write more than it may", function()
      local function copied(most)
        return shell("head -c 3000000 /dev/zero >/big", { resources_limits = { max_layer_bytes = most } })
          .metadata.result.state.exit_code
      end
      assert.equal(0, copied(10 << 20))
      assert.not_equal(0, copied(1 << 20))
      assert.equal(12 << 30, spawn({ command = "true", resources_limits = { max_layer_bytes = 1 << 50 } })
        .json.resources_limits.max_layer_bytes)
    end)

    it("S41: that cannot start has FAILED, and says why", function()
      for line, body in pairs {
        ["no%-such%-program"] = { command = "no-such-program" },
        ["/no/such"] = { command = "true", cwd = "/no/such" },
        ["/etc/passwd"] = { command = "/etc/passwd" },
      } do
        local finished = run(body)
        assert.equal("FAILED", finished.status)
        assert.match(line, finished.error)
        assert.is_true(finished.error_kind == "not_found" or finished.error_kind == "denied", finished.error_kind)
        assert.same({ cjson.null, cjson.null, cjson.null },
          { finished.result_image_uuid, finished.result, finished.metadata.result })
        local all = events(finished.uuid)
        local completion = of_type(all, "completion")
        assert.same({ "FAILED", finished.error }, { completion.status, completion.error })
        assert.is_nil(of_type(all, "spawn"))
      end
    end)

    it("wants a body of the right kind, and lets pass what it does not know", function()
      for _, body in ipairs { "", "{", "[]", "null", '"x"', "{}", '{"command":"true"}', '{"image":"tag:busybox"}',
        '{"command":7,"image":"tag:busybox"}', '{"command":"true","image":"tag:busybox","args":"x"}',
        '{"command":"true","image":"tag:busybox","args":[1]}', '{"command":"true","image":"tag:busybox","shell":1}',
        '{"command":"a\\u0000b","image":"tag:busybox"}', '{"command":"true","image":"tag:busybox","files":[1]}',
        '{"command":"true","image":"tag:busybox","networking":true}' } do
        local answer = served:post("/instances", { body = body })
        assert.equal(400, answer.status, body)
        assert.equal("string", type(answer.json.error))
      end
      local model = [[{"command":"true","image":"tag:busybox","args":null,"shell":null,"env":null,"preserve_env":null,
        "cwd":null,"uid":null,"gid":null,"disposable":null,"hostname":null,"stdin":null,"files":null,"timeout":null,
        "truncate_output_at":null,"networking":null,"resources_limits":null,"result":null,"extra":{"a":[1]}}]]
      local answer = served:post("/instances", { body = model })
      assert.equal(201, answer.status, answer.body)
      assert.equal("SUCCESS", served:finished(answer.json.uuid).status)
      local large = run { command = "echo", args = { ("x"):rep(100000) } }
      assert.equal(100001, #output(large))
      local word = ("x"):rep(1000000)
      assert.equal(400, spawn({ command = "echo", args = { word, word, word } }).status)
      local refused = run { command = "echo", args = { ("x"):rep(200000) } } -- more than Linux takes in one word
      assert.equal("FAILED", refused.status)
    end)

    it("leaves nothing behind of what it started", function()
      local mark = fixture.long_time()
      local finished = shell(("sleep %s & setsid sleep %s & echo $!"):format(mark, mark))
      assert.equal("SUCCESS", finished.status)
      fixture.gone("sleep " .. mark)
    end)
  end)

  describe("limits and permissions", function()
    local limited

    setup(function()
      limited = serving.start { tokens = {
        { name = "two", token = "token-two", limits = { instance_max_concurrency = 2, instance_max_timeout = 5 } },
        { name = "throw", token = "token-throw", permissions = { "list", "spawn_disposable" } },
        { name = "look", token = "token-look", permissions = { "list" } },
        { name = "cancel", token = "token-cancel", permissions = { "cancel" } },
      } }
    end)

    teardown(function() limited:stop() end)

    local function post(token, body)
      body.image = "tag:busybox"
      return limited:post("/instances", { json = body, token = token })
    end

    it("S36: more runs than allowed are 429, before anything is there", function()
      local waits = { command = "cat", stdin = { value = "", close = false } }
      local one, two = post("token-two", waits).json.uuid, post("token-two", waits).json.uuid
      local before = #limited:get("/operations").json
      local answer = post("token-two", waits)
      assert.equal(429, answer.status)
      assert.equal("Max concurrency limit of 2 instances reached for project", answer.json.error)
      assert.is_true(tonumber(answer.headers["retry-after"]) >= 0)
      assert.equal(before, #limited:get("/operations").json)
      assert.equal(2, limited:get("/whoami").json.operations_stat.running_instances)
      assert.equal(201, post("token-throw", { command = "true", disposable = true }).status) -- counts for itself
      assert.equal(202, limited:delete("/operations/" .. one).status)
      limited:finished(one)
      assert.equal(201, post("token-two", { command = "true" }).status)
      limited:delete("/operations/" .. two)
      limited:finished(two)
    end)

    it("S36: many at once are counted right", function()
      local statuses = {}
      fixture.until_true("nothing runs", function()
        return limited:get("/whoami").json.operations_stat.running_instances == 0
      end)
      bough.run(function()
        local list = {}
        for i = 1, 12 do
          list[i] = function()
            local status = post("token-two", { command = "sleep 0.2", shell = true }).status
            statuses[status] = (statuses[status] or 0) + 1
          end
        end
        bough.all(list)
      end)
      assert.same({ [201] = 2, [429] = 10 }, statuses)
      fixture.until_true("their end", function()
        return limited:get("/whoami").json.operations_stat.running_instances == 0
      end)
    end)

    it("S4: what a token may not do is 403", function()
      assert.equal(201, post("token-throw", { command = "true", disposable = true }).status)
      local answer = post("token-throw", { command = "true" })
      assert.same({ 403, "Insufficient permissions: spawn" }, { answer.status, answer.json.error })
      answer = post("token-look", { command = "true" })
      assert.same({ 403, "Insufficient permissions: spawn or spawn_disposable" }, { answer.status, answer.json.error })
      local uuid = post("token-two", { command = "sleep 900", shell = true }).json.uuid
      assert.equal(403, limited:delete("/operations/" .. uuid, { token = "token-look" }).status)
      assert.equal(403, limited:delete(("/operations/%s/subprocesses/1"):format(uuid), { token = "token-look" }).status)
      assert.equal(200, limited:get("/operations/" .. uuid, { token = "token-look" }).status)
      assert.equal(202, limited:delete("/operations/" .. uuid, { token = "token-cancel" }).status)
      limited:finished(uuid)
    end)

    it("the time limit is that of the token", function()
      for asked, given in pairs { [5] = 5, [50] = 5, [3] = 3 } do
        local told = post("token-two", { command = "true", timeout = asked }).json
        assert.equal(given, told.timeout)
        limited:finished(told.uuid)
      end
      assert.equal(5, post("token-two", { command = "true" }).json.timeout)
    end)
  end)

  describe("an operation", function()
    it("S38: goes forward only, and stays what it has become", function()
      local order = { PENDING = 1, ASSIGNED = 2, EXECUTING = 3, SUCCESS = 4 }
      local uuid = start { command = "sleep 0.3", shell = true }
      local last = 0
      repeat
        local now = operation(uuid)
        assert.is_true(order[now.status] >= last, now.status)
        last = order[now.status]
      until last == 4
      local before = served:get("/operations/" .. uuid).body
      served:delete("/operations/" .. uuid)
      assert.equal(before, served:get("/operations/" .. uuid).body)
    end)

    it("tells when to ask again, as long as it runs", function()
      local uuid = gate()
      local now, answer = operation(uuid)
      assert.same({ "EXECUTING", "1", cjson.null, cjson.null },
        { now.status, answer.headers["retry-after"], now.metadata.result, now.result_image_uuid })
      assert.equal(202, stdin(uuid, 1, ""))
      local _, after = operation(served:finished(uuid).uuid)
      assert.is_nil(after.headers["retry-after"])
    end)

    it("S39: is cancelled, once", function()
      local mark = fixture.long_time()
      local uuid = start { command = ("echo begun; (setsid sleep %s &) ; sleep %s"):format(mark, mark), shell = true }
      wait_for(uuid, "stdout", 1)
      local answer = served:delete("/operations/" .. uuid)
      assert.same({ 202, "" }, { answer.status, answer.body })
      local finished = served:finished(uuid)
      assert.equal("CANCELLED", finished.status)
      assert.equal(0, #fixture.processes("sleep " .. mark))
      assert.same({ cjson.null, cjson.null }, { finished.result_image_uuid, finished.result })
      assert.equal("begun\n", output(finished))
      answer = served:delete("/operations/" .. uuid)
      assert.same({ 409, "operation is not cancellable" }, { answer.status, answer.json.error })
      assert.equal(404, served:delete("/operations/" .. NOBODY).status)
      assert.equal(404, served:delete("/operations/nonsense").status)
      local all = events(uuid)
      assert.equal("CANCELLED", of_type(all, "completion").status)
      assert.equal("cancelled", of_type(all, "shutdown").reason)
    end)

    it("S39: is cancelled at any moment of its life", function()
      for delay = 0, 14 do
        local uuid = start { command = "sleep 900", shell = true }
        core.sleep(delay / 2000)
        assert.equal(202, served:delete("/operations/" .. uuid).status)
        assert.equal("CANCELLED", served:finished(uuid).status)
        assert.equal("completion", events(uuid)[#events(uuid)].event)
      end
      fixture.gone "sleep 900"
    end)

    it("S39: cancelled as it ends, it ends one way or the other", function()
      for delay = 0, 9 do
        local uuid = start { command = "echo x >/x", shell = true }
        core.sleep(delay / 2000)
        local status = served:delete("/operations/" .. uuid).status
        local finished = served:finished(uuid)
        assert.is_true(status == 202 or status == 409)
        assert.is_true(finished.status == "SUCCESS" or finished.status == "CANCELLED")
        assert.equal(finished.status == "SUCCESS", finished.result_image_uuid ~= cjson.null)
      end
    end)

    it("S40: inflight shows what there is so far", function()
      local uuid = gate { command = "echo so far; echo errors >&2; cat >/dev/null; echo more" }
      wait_for(uuid, "stderr", 1)
      local result = operation(uuid, "?inflight=1").metadata.result
      assert.same({ -1, -1, "so far\n", "errors\n" },
        { result.state.exit_code, result.state.signal, bytes_of(result.stdout), bytes_of(result.stderr) })
      assert.is_true(result.state.pid > 0)
      assert.equal(cjson.null, operation(uuid).metadata.result)
      assert.equal(cjson.null, operation(uuid, "?inflight=0").metadata.result)
      stdin(uuid, 1, "")
      assert.equal("so far\nmore\n", output(served:finished(uuid)))
      assert.equal("so far\nmore\n", bytes_of(operation(uuid, "?inflight=1").metadata.result.stdout))
    end)

    it("S15: is listed by status, kind and time, newest first", function()
      local first, second = run({ command = "true" }).uuid, run({ command = "false" }).uuid
      local active = gate()
      local function listed(query)
        local answer = served:get("/operations" .. query)
        assert.equal(200, answer.status, answer.body)
        local all = {}
        for i, one in ipairs(answer.json) do all[i] = one.uuid end
        return all
      end
      local all = listed ""
      assert.same({ active, second, first }, { all[1], all[2], all[3] })
      assert.same({ active }, listed "?status=EXECUTING")
      assert.same({}, listed "?status=PENDING")
      assert.equal(second, listed("?status=SUCCESS")[1])
      assert.same({ second, first }, listed "?status=SUCCESS&limit=2&kind=instance")
      assert.same({}, listed "?kind=image_import")
      assert.same({ second }, listed "?limit=1&offset=1")
      assert.same({}, listed "?offset=100000")
      assert.equal(400, served:get("/operations?status=DONE").status)
      assert.equal(400, served:get("/operations?kind=other").status)
      local created = operation(second).created_at
      local since = listed("?since=" .. created)
      assert.same({ active, second }, since)
      assert.equal(second, listed("?until=" .. created)[1])
      assert.same({ active }, listed("?status=EXECUTING&since=" .. created))
      assert.same({}, listed("?status=EXECUTING&until=" .. created))
      local summary = served:get("/operations?limit=1&offset=1").json[1]
      assert.is_nil(summary.metadata)
      for _, name in ipairs { "uuid", "kind", "status", "created_at", "duration", "image_size", "consumed_cpu",
        "consumed_memory", "image_uuid", "result_image_uuid" } do
        assert.is_not_nil(summary[name], name)
      end
      assert.equal("[]", served:get("/operations?offset=100000").body)
    end)

    it("that nobody has heard of is 404", function()
      for _, id in ipairs { NOBODY, "x", "a%2Fb" } do
        for _, path in ipairs { "", "/events", "/subprocesses/1" } do
          local answer = served:get("/operations/" .. id .. path)
          assert.same({ 404, "not_found" }, { answer.status, answer.json.error_kind })
        end
      end
    end)

    it("is found by its UUID in either case", function()
      local uuid = run({ command = "true" }).uuid
      assert.equal(uuid, operation(uuid:upper()).uuid)
      assert.equal("completion", events(uuid:upper())[6].event)
    end)
  end)

  describe("its events", function()
    it("S42: count up from 0, and say the same in frame and payload", function()
      local finished = shell "echo one; echo two >&2; sleep 0.05; echo three"
      local all = events(finished.uuid)
      for i, event in ipairs(all) do
        assert.equal(i - 1, event.id)
        assert.equal(event.id, event.data.id)
        assert.equal(event.event, event.data.type)
        assert.match("^%d%d%d%d%-%d%d%-%d%dT%d%d:%d%d:%d%d%.%d+Z$", event.data.ts)
      end
      assert.equal("init network spawn", types({ table.unpack(all, 1, 3) }))
      assert.equal("exit shutdown completion", types({ table.unpack(all, #all - 2) }))
      assert.equal("one\nthree\n", written(all, "stdout", 1))
      assert.equal("two\n", written(all, "stderr", 1))
    end)

    it("have what the protocol says", function()
      local uuid = start { command = "sh", args = { "-c", "exit 3" }, cwd = "/usr", uid = 3, gid = 4, timeout = 30,
        truncate_output_at = 99, hostname = "h" }
      local finished = served:finished(uuid)
      local all = events(uuid)
      local init = of_type(all, "init")
      assert.same({ "h", false, 1, "string", "string" },
        { init.hostname, init.verbose, init.init_pid, type(init.runtime_path), type(init.started_at) })
      local spawned = of_type(all, "spawn", 1)
      for name, value in pairs {
        command = "sh", shell = false, cwd = "/usr", uid = 3, gid = 4, timeout = 30, truncate_at = 99,
      } do
        assert.equal(value, spawned[name], name)
      end
      assert.same({ "-c", "exit 3" }, spawned.args)
      local exit = of_type(all, "exit", 1)
      assert.same({ spawned.pid, 3, -1, false }, { exit.pid, exit.code, exit.signal, exit.timed_out })
      assert.is_true(exit.duration_ms >= 0)
      for _, name in ipairs {
        "user_time_us", "sys_time_us", "max_rss_kb", "shared_memory", "unshared_memory", "swaps", "minor_faults",
        "major_faults", "voluntary_ctx_switches", "involuntary_ctx_switches", "block_input_ops", "block_output_ops",
        "ipc_msgs_sent", "ipc_msgs_received", "signals_received",
      } do
        assert.is_true(math.tointeger(exit.resources[name]) ~= nil, name)
      end
      assert.equal(finished.metadata.result.state.pid, exit.pid)
      assert.equal("job_complete", of_type(all, "shutdown").reason)
    end)

    it("S43: replay ends by itself, and following a finished run does", function()
      local finished = shell "echo x"
      local one = events(finished.uuid)
      local two = events(finished.uuid, "?follow=1")
      assert.equal("completion", one[#one].event)
      assert.same(one, two)
      local uuid = gate { command = "echo so far; cat" }
      wait_for(uuid, "stdout", 1)
      assert.equal("init network spawn stdout", types(events(uuid)))
    end)

    it("S44: begin behind the id that is named, and the header wins", function()
      local uuid = shell("echo x").uuid
      local all = events(uuid)
      local function ids(query, header)
        local list = {}
        for i, event in ipairs(events(uuid, query, { ["Last-Event-Id"] = header })) do list[i] = event.id end
        return table.concat(list, " ")
      end
      assert.equal("0 1 2 3 4 5 6", ids())
      assert.equal("0 1 2 3 4 5 6", ids "?since=-1")
      assert.equal("4 5 6", ids "?since=3")
      assert.equal("4 5 6", ids(nil, "3"))
      assert.equal("6", ids("?since=2", "5"))
      assert.equal("0 1 2 3 4 5 6", ids("?since=2", "-1"))
      assert.equal("3 4 5 6", ids("?since=2", "no number"))
      assert.equal("", ids "?since=6")
      assert.equal("", ids "?since=999999&follow=1")
      assert.equal(7, #all)
      assert.equal(400, served:get("/operations/" .. uuid .. "/events?since=x").status)
    end)

    it("S45: are of one process where that is asked for", function()
      local uuid = gate()
      assert.same({ spid = 2 }, subprocess(uuid, { command = "echo", args = { "two" } }).json)
      wait_for(uuid, "exit", 2)
      stdin(uuid, 1, "")
      served:finished(uuid)
      local of_two = events(uuid, "?spid=2")
      assert.equal("spawn stdout exit", types(of_two))
      assert.is_true(of_two[1].id > 2)
      assert.equal("spawn exit", types(events(uuid, "?spid=1")))
      assert.equal("init network shutdown completion", types(events(uuid, "?spid=0&follow=1")))
      assert.same({}, events(uuid, "?spid=7"))
      assert.equal(400, served:get("/operations/" .. uuid .. "/events?spid=-1").status)
    end)

    it("S46: end with completion", function()
      local finished = shell "echo x >/x"
      local all = events(finished.uuid, "?follow=1")
      local completion = all[#all].data.data
      assert.equal("completion", all[#all].event)
      assert.same({ "SUCCESS", finished.result_image_uuid, cjson.null, finished.image_size },
        { completion.status, completion.result_image_uuid, completion.error, completion.image_size_bytes })
      assert.equal(math.floor(finished.duration * 1000 + 0.5), completion.duration_ms)
      all = events(shell("true", { disposable = true }).uuid)
      assert.equal(cjson.null, of_type(all, "completion").result_image_uuid)
    end)

    -- A follower that can be read from as events come.
    local function follow(uuid, query, headers)
      headers = headers or {}
      headers.accept = "text/event-stream"
      return served.http:open {
        url = ("%s/v1/operations/%s/events?follow=1%s"):format(served.url, uuid, query or ""), bearer = served.token,
        headers = headers, compressed = headers["Accept-Encoding"] ~= nil, timeout = 60,
      }
    end

    local function read_until(stream, pattern)
      local text = ""
      while not text:find(pattern) do
        local piece = stream:read()
        if not piece then error(("the stream ended without %s: %s"):format(pattern, text)) end
        text = text .. piece
      end
      return text
    end

    it("S6: come to followers at once, to compressed ones too", function()
      for _, headers in ipairs { {}, { ["Accept-Encoding"] = "gzip" } } do
        local uuid = gate { command = "cat" }
        local stream = follow(uuid, nil, headers)
        assert.equal(200, stream.status)
        assert.match("^text/event%-stream", stream.headers["content-type"])
        read_until(stream, "event: spawn")
        stdin(uuid, 1, "here\n", false)
        assert.match("here", read_until(stream, "event: stdout\n.-\n\n"), 1, true)
        stdin(uuid, 1, "")
        read_until(stream, "event: completion\n.-\n\n")
        assert.is_nil(stream:read())
        stream:close()
      end
    end)

    it("S47: keepalive comments come while nothing happens", function()
      local before = events_module.keepalive(0.05)
      local uuid = gate()
      local stream = follow(uuid)
      read_until(stream, ": keepalive\n\n.*: keepalive\n\n")
      events_module.keepalive(before)
      stdin(uuid, 1, "")
      local text = read_until(stream, "completion")
      assert.is_nil(text:find "event: keepalive")
      stream:close()
    end)

    it("S47: 425 before the start, with Retry-After", function()
      local app = served.server.app
      local one = app.operations:create { kind = "instance", token = app.config.tokens[1], metadata = {} }
      local answer = served:get("/operations/" .. one.uuid .. "/events")
      assert.same({ 425, "1" }, { answer.status, answer.headers["retry-after"] })
      answer = subprocess(one.uuid, { command = "true" })
      assert.same({ 425, "1" }, { answer.status, answer.headers["retry-after"] })
      assert.equal("PENDING", operation(one.uuid).status)
      assert.same({ one.uuid }, { served:get("/operations?status=PENDING").json[1].uuid })
      one:finish { status = "FAILED", error = "it was only a test" }
      assert.equal("completion", types(events(one.uuid)))
    end)

    it("S47, S48: where the log is lost readers are told so, early or late", function()
      local uuid = gate { command = "cat" }
      local one = served.server.app.operations.live[uuid]
      -- a journal whose disk is full
      one.log.journal = setmetatable({ append = function() error(core.error("resource", "no space left"), 0) end },
        { __index = function() error "not to be called" end })
      local stream = follow(uuid)
      read_until(stream, "event: spawn")
      for _ = 1, 8 do assert.equal(202, stdin(uuid, 1, ("x"):rep(65536), false)) end
      fixture.until_true("the end of the beginning", function() return one.log.first > 0 end)
      local answer = served:get("/operations/" .. uuid .. "/events")
      assert.same({ 410, "3" }, { answer.status, answer.headers["retry-after"] })
      -- this one has had the beginning, and is behind: it reads what its connection holds, and then hears of it
      local late = one.log:reader(2)
      local ok, problem = pcall(late.next, late)
      assert.is_true(ok or problem.kind == "resource")
      stream:close()
      one.log.first = one.log.last -- as if it had been read slowly
      stream = follow(uuid, "&since=" .. one.log.last - 1)
      read_until(stream, "event: stdout")
      one.log.changed:fire()
      local last = one.log.last
      one.log.first = last + 10
      one.log.last = last + 10
      one.log.changed:fire()
      local text = read_until(stream, "event: sse_error\n.-\n\n")
      local all, comments = parse(text)
      assert.equal("no space left", all[#all].text)
      assert.is_nil(all[#all].id)
      assert.match("retry since last event id", comments[#comments])
      assert.is_nil(stream:read())
      stream:close()
      one.log.first = last + 1
      one.log.last = last
      stdin(uuid, 1, "")
      local finished = served:finished(uuid) -- the run knows nothing of it
      assert.same({ "SUCCESS", 8 * 65536 }, { finished.status, #output(finished) })
    end)

    it("S49: secrets in the environment are not shown", function()
      local env = {
        PLAIN = "shown", MY_TOKEN = "s1", api_key = "s2", DB_PASSWORD = "s3", X_Secret = "s4", AWS_CREDENTIALS = "s5",
        PROXY_AUTHORIZATION = "s6", TOKEN_NAME = "name",
      }
      local finished = shell("echo $MY_TOKEN$api_key", { env = env })
      assert.equal("s1s2\n", output(finished))
      local shown = of_type(events(finished.uuid), "spawn").env
      assert.same({ "shown", "name" }, { shown.PLAIN, shown.TOKEN_NAME })
      for name, value in pairs(env) do
        if value:find "^s%d$" then assert.not_equal(value, shown[name], name) end
        assert.equal("string", type(shown[name]), name)
      end
    end)

    it("S50: readers that go away or stand still disturb nobody", function()
      local uuid = gate { command = "head -c 3000000 /dev/zero; cat", truncate_output_at = 4000000 }
      local still, gone = follow(uuid), follow(uuid)
      gone:read()
      gone:close()
      local good = follow(uuid)
      stdin(uuid, 1, "end")
      local parts = {}
      for piece in function() return good:read() end do parts[#parts + 1] = piece end
      good:close()
      local all = parse(table.concat(parts))
      assert.equal("completion", all[#all].event)
      assert.equal(3000003, #written(all, "stdout", 1))
      assert.equal("SUCCESS", served:finished(uuid).status)
      parts = {}
      for piece in function() return still:read() end do parts[#parts + 1] = piece end
      still:close()
      assert.same(all, (parse(table.concat(parts))))
    end)

    it("are the same for all, however late they come, and the output whole and in order", function()
      local uuid = start { command = "i=0; while [ $i -lt 3000 ]; do echo line $i; i=$((i+1)); done", shell = true }
      local texts = {}
      bough.run(function()
        local list = {}
        for i = 1, 4 do
          list[i] = function()
            core.sleep(i / 200)
            local stream <close> = follow(uuid)
            local parts = {}
            for piece in function() return stream:read() end do parts[#parts + 1] = piece end
            texts[i] = table.concat(parts)
          end
        end
        bough.all(list)
      end)
      local expected = {}
      for i = 0, 2999 do expected[i + 1] = ("line %d\n"):format(i) end
      local text = served:get("/operations/" .. uuid .. "/events", { max_bytes = 64 << 20 }).body
      for i = 1, 4 do assert.equal(text, texts[i]) end
      assert.equal(table.concat(expected), written(parse(text), "stdout", 1))
      assert.equal(table.concat(expected), output(served:finished(uuid)))
    end)

    it("of a log that is too long say so, and go on without output", function()
      local eventlog = require "bough.serve.eventlog"
      local app = served.server.app
      local one = app.operations:create { kind = "instance", token = app.config.tokens[1], metadata = {} }
      one.log = eventlog.new(app.journal, one.uuid, 10000)
      local kept = 0
      for _ = 1, 20 do
        if one.log:stream(1, "stdout", ("x"):rep(1000)) then kept = kept + 1 end
      end
      assert.is_true(kept > 5 and kept < 12)
      one.log:put(1, "exit", { code = 0 })
      one:finish { status = "SUCCESS" }
      local all = events(one.uuid)
      assert.equal(("stdout "):rep(kept) .. "size_cap exit completion", types(all))
      local cap = of_type(all, "size_cap", 0)
      assert.equal(10000, cap.limit_bytes)
      assert.is_true(cap.file_size >= 10000)
    end)

    it("of an import there are none", function()
      local app = served.server.app
      local one = app.operations:create { kind = "image_import", token = app.config.tokens[1], metadata = {} }
      assert.equal(404, served:get("/operations/" .. one.uuid .. "/events").status)
      one:finish { status = "SUCCESS", result_image = busybox, tag = "some:tag" }
      assert.equal(404, served:get("/operations/" .. one.uuid .. "/events").status)
      local told = operation(one.uuid)
      assert.same({ image = busybox, tag = "some:tag" }, told.result)
      assert.same({ "image_import", "SUCCESS", busybox }, { told.kind, told.status, told.result_image_uuid })
      fixture.until_true("it is stored", function() return not app.operations.live[one.uuid] end)
      assert.same(told, operation(one.uuid))
      assert.equal(409, subprocess(one.uuid, { command = "true" }).status)
    end)
  end)

  describe("subprocesses", function()
    it("S51: have numbers from 2 on", function()
      local uuid = gate()
      for spid = 2, 4 do
        local answer = subprocess(uuid, { command = "true" })
        assert.equal(201, answer.status, answer.body)
        assert.same({ spid = spid }, answer.json)
      end
    end)

    it("S51: are started as soon as the sandbox is there", function()
      local uuid = start { command = "cat", stdin = { value = "", close = false } }
      assert.equal(201, subprocess(uuid, { command = "echo", args = { "early" } }).status)
      wait_for(uuid, "exit", 2)
      assert.equal("early\n", bytes_of(process(uuid, 2).stdout))
    end)

    it("S52: tell what there is of them, at any time", function()
      local uuid = gate()
      subprocess(uuid, {
        command = "echo so far; echo e >&2; cat; exit 5", shell = true, stdin = { value = "", close = false },
      })
      wait_for(uuid, "stderr", 2)
      local result = process(uuid, 2)
      assert.same({ -1, -1, "so far\n", "e\n" },
        { result.state.exit_code, result.state.signal, bytes_of(result.stdout), bytes_of(result.stderr) })
      assert.equal(202, stdin(uuid, 2, "more"))
      wait_for(uuid, "exit", 2)
      result = process(uuid, 2)
      assert.same({ 5, -1, "so far\nmore" }, { result.state.exit_code, result.state.signal, bytes_of(result.stdout) })
      local _, unknown = process(uuid, 3)
      assert.equal(404, unknown.status)
      assert.equal(404, (select(2, process(uuid, 0))).status)
      assert.equal(404, served:get("/operations/" .. uuid .. "/subprocesses/x").status)
      stdin(uuid, 1, "")
      served:finished(uuid)
      local app = served.server.app
      fixture.until_true("it is stored", function() return not app.operations.live[uuid] end)
      local stored = process(uuid, 2)
      assert.same({ result.state, result.stdout, result.stderr }, { stored.state, stored.stdout, stored.stderr })
      assert.equal(0, process(uuid, 1).state.exit_code)
      assert.equal(404, (select(2, process(uuid, 3))).status)
    end)

    it("S52: a truncated one is told as such from the log too", function()
      local uuid = gate()
      subprocess(uuid, { command = "printf 0123456789", shell = true, truncate_output_at = 4 })
      wait_for(uuid, "exit", 2)
      local expected = { value = "0123", encoding = "ascii", truncated = true }
      assert.same(expected, process(uuid, 2).stdout)
      stdin(uuid, 1, "")
      served:finished(uuid)
      fixture.until_true("it is stored", function() return not served.server.app.operations.live[uuid] end)
      assert.same(expected, process(uuid, 2).stdout)
      assert.same({ stream = "stdout", bytes_emitted = 4, bytes_dropped = 6 },
        of_type(events(uuid, "?spid=2"), "truncated"))
    end)

    it("S53: stdin appends in order, and closes, for spid 1 too", function()
      local uuid = gate { command = "cat" }
      subprocess(uuid, { command = "cat", stdin = { value = "0", close = false } })
      for spid = 1, 2 do
        for i = 1, 9 do assert.equal(202, stdin(uuid, spid, tostring(i), false)) end
      end
      assert.equal(202, stdin(uuid, 2, "end", true))
      assert.equal(409, stdin(uuid, 2, "more", false))
      wait_for(uuid, "exit", 2)
      assert.equal("0123456789end", bytes_of(process(uuid, 2).stdout))
      assert.equal(409, stdin(uuid, 2, "more", false))
      assert.equal(202, served:post(("/operations/%s/subprocesses/1/stdin"):format(uuid),
        { json = { value = encode64 "\0\xff", encoding = "base64" } }).status)
      assert.equal("123456789\0\xff", output(served:finished(uuid)))
      assert.equal("0123456789end", written(events(uuid), "stdin", 2))
      assert.equal(409, stdin(uuid, 9, "x", false)) -- the operation has ended
    end)

    it("S53: what has no stdin, or does not read it, takes none", function()
      local uuid = gate()
      subprocess(uuid, { command = "sleep 900", shell = true })
      assert.equal(409, stdin(uuid, 2, "x", false))
      assert.equal(404, stdin(uuid, 3, "x", false))
      subprocess(uuid, {
        command = "exec <&-; echo closed; sleep 900", shell = true, stdin = { value = "", close = false },
      })
      wait_for(uuid, "stdout", 3)
      assert.equal(409, stdin(uuid, 3, "x", false))
      local answer = served:post(("/operations/%s/subprocesses/1/stdin"):format(uuid), { json = {} })
      assert.equal(400, answer.status)
      answer = served:post(("/operations/%s/subprocesses/1/stdin"):format(uuid),
        { json = { value = "=", encoding = "base64" } })
      assert.equal(400, answer.status)
    end)

    it("S53: a full pipe answers late", function()
      local uuid = gate { command = "read -r first; cat | wc -c" }
      local answered = false
      bough.run(function()
        local task = bough.spawn(function()
          assert.equal(202, stdin(uuid, 1, "first\n", false))
          for _ = 1, 10 do assert.equal(202, stdin(uuid, 1, ("x"):rep(300000), false)) end
          assert.equal(202, stdin(uuid, 1, "", true))
          answered = true
        end)
        assert.equal(201, subprocess(uuid, { command = "pkill -STOP cat", shell = true }).status)
        task:wait()
      end)
      assert.is_true(answered)
      assert.equal("3000000\n", output(served:finished(uuid)))
    end)

    it("S53: one that waits for room hears when its process ends", function()
      local uuid = gate { command = "sleep 900" }
      bough.run(function()
        local task = bough.spawn(function() return stdin(uuid, 1, ("x"):rep(3000000), false) end)
        core.sleep(0.1)
        assert.equal("waiting", task.status)
        served:delete(("/operations/%s/subprocesses/1?signal=KILL"):format(uuid))
        assert.equal(409, task:wait())
      end)
    end)

    it("S54: signals reach their target and nobody else", function()
      local uuid = gate()
      local function signal(spid, query)
        return served:delete(("/operations/%s/subprocesses/%d%s"):format(uuid, spid, query or "")).status
      end
      local names = { "TERM", "SIGTERM", "term", "SigTerm", "15" }
      for i, name in ipairs(names) do
        subprocess(uuid, { command = "sleep", args = { "900" } })
        assert.equal(202, signal(i + 1, "?signal=" .. name))
        assert.equal(15, wait_for(uuid, "exit", i + 1).signal)
      end
      subprocess(uuid, { command = "sleep", args = { "900" } })
      assert.equal(202, signal(7))
      local state = (wait_for(uuid, "exit", 7) and process(uuid, 7)).state
      assert.same({ -1, 15 }, { state.exit_code, state.signal })
      assert.equal(409, signal(7))
      assert.equal(404, signal(8))
      for _, wrong in ipairs { "NOSUCH", "0", "65", "999", "-9", "" } do
        assert.equal(400, signal(1, "?signal=" .. wrong), wrong)
      end
      subprocess(uuid, { command = "trap 'echo hup; exit 4' HUP; echo ready; sleep 900 & wait", shell = true })
      wait_for(uuid, "stdout", 8)
      assert.equal(202, signal(8, "?signal=SIGHUP"))
      assert.equal(4, wait_for(uuid, "exit", 8).code)
      assert.equal("EXECUTING", operation(uuid).status)
      assert.equal(202, signal(1, "?signal=KILL"))
      local finished = served:finished(uuid)
      assert.same({ "SUCCESS", 9, -1 },
        { finished.status, finished.metadata.result.state.signal, finished.metadata.result.state.exit_code })
      assert.equal(409, signal(1))
    end)

    it("S54: with spid 1 all of them end, and tell of it before the operation does", function()
      local uuid = gate()
      local mark = fixture.long_time()
      subprocess(uuid, { command = "echo begun; sleep " .. mark, shell = true })
      wait_for(uuid, "stdout", 2)
      stdin(uuid, 1, "")
      local finished = served:finished(uuid)
      assert.equal(0, #fixture.processes("sleep " .. mark))
      local all = events(uuid)
      assert.equal("spawn stdout exit", types(all, 2))
      assert.equal(9, of_type(all, "exit", 2).signal)
      assert.equal("shutdown completion", types({ all[#all - 1], all[#all] }))
      assert.is_true(finished.consumed_cpu > 0)
      assert.equal(409, subprocess(uuid, { command = "true" }).status)
    end)

    it("S55: have events of their own number, and write to the image", function()
      local uuid = gate()
      subprocess(uuid, { command = "echo two >/two; echo 2", shell = true, env = { X_TOKEN = "secret", Y = "y" } })
      wait_for(uuid, "exit", 2)
      subprocess(uuid, { command = "cat /two; echo err >&2", shell = true })
      wait_for(uuid, "exit", 3)
      stdin(uuid, 1, "")
      local finished = served:finished(uuid)
      local all = events(uuid)
      assert.same({ "2\n", "two\n", "err\n" },
        { written(all, "stdout", 2), written(all, "stdout", 3), written(all, "stderr", 3) })
      local spawned = of_type(all, "spawn", 2)
      assert.same({ "y", 0, true }, { spawned.env.Y, spawned.timeout, spawned.shell })
      assert.not_equal("secret", spawned.env.X_TOKEN)
      assert.equal("two\n", served:get("/inspect/" .. finished.result.image .. "/download?path=/two").body)
    end)

    it("that cannot start say why, and take no number", function()
      local uuid = gate()
      for _, case in ipairs {
        { { command = "no-such-program" }, 404, "not_found" },
        { { command = "true", cwd = "/no/such" }, 404, "not_found" },
        { { command = "/etc/passwd" }, 422, "denied" },
        { { command = "" }, 400, "invalid" }, { {}, 400, "invalid" },
        { { command = "true", cwd = "x" }, 400, "invalid" },
      } do
        local answer = subprocess(uuid, case[1])
        assert.same({ case[2], case[3] }, { answer.status, answer.json.error_kind }, answer.body)
      end
      assert.same({ spid = 2 }, subprocess(uuid, { command = "true" }).json)
      assert.equal(404, subprocess(NOBODY, { command = "true" }).status)
    end)

    it("in number are bounded", function()
      local uuid = gate()
      local statuses = {}
      bough.run(function()
        local list = { limit = 32 }
        for i = 1, 260 do
          list[i] = function()
            local status = subprocess(uuid, { command = "sleep", args = { "900" } }).status
            statuses[status] = (statuses[status] or 0) + 1
          end
        end
        bough.all(list)
      end)
      assert.same({ [201] = 256, [429] = 4 }, statuses)
      stdin(uuid, 1, "")
      assert.equal("SUCCESS", served:finished(uuid).status)
      assert.equal(257, select(2, types(events(uuid)):gsub("exit", "")))
    end)

    it("that write much do not fill the memory, and what they wrote is there", function()
      local uuid = gate()
      for spid = 2, 6 do
        subprocess(uuid, {
          command = ("yes %d | head -c 9000000"):format(spid), shell = true, truncate_output_at = 10 << 20,
        })
      end
      for spid = 2, 6 do wait_for(uuid, "exit", spid) end
      assert.is_true(served.server.app.operations.live[uuid].sandbox.place.kept <= 32 << 20)
      local function check()
        for spid = 2, 6 do
          local answer = served:get(("/operations/%s/subprocesses/%d"):format(uuid, spid), { max_bytes = 32 << 20 })
          local text = bytes_of(answer.json.stdout)
          assert.equal(0, answer.json.state.exit_code)
          assert.equal(9000000, #text)
          assert.equal((("%d\n"):format(spid)):rep(4500000), text)
        end
      end
      check()
      stdin(uuid, 1, "")
      served:finished(uuid)
      check()
    end)

    it("that leave children behind end all the same, with what they wrote", function()
      local uuid = gate()
      local mark = fixture.long_time()
      subprocess(uuid, { command = ("echo mine; (echo child; exec sleep %s) &"):format(mark), shell = true })
      local exit = wait_for(uuid, "exit", 2)
      assert.equal(0, exit.code)
      assert.equal("mine\nchild\n", written(events(uuid), "stdout", 2))
      assert.equal(1, #fixture.processes("sleep " .. mark)) -- it goes on until the sandbox ends
      subprocess(uuid, {
        command = "echo mine; while :; do echo talking; done &", shell = true, truncate_output_at = 100,
      })
      assert.equal(0, wait_for(uuid, "exit", 3).code)
      assert.match("^mine\ntalking\n", written(events(uuid), "stdout", 3))
      assert.equal(202, served:delete(("/operations/%s/subprocesses/1?signal=CONT"):format(uuid)).status) -- all is well
      stdin(uuid, 1, "")
      served:finished(uuid)
      fixture.gone("sleep " .. mark)
    end)
  end)

  it("many at once all come to their end", function()
    local finished = 0
    bough.run(function()
      local list = { limit = 50 }
      for i = 1, 150 do
        list[i] = function()
          local answer = served:post("/instances", { json = {
            command = "echo $N", shell = true, env = { N = tostring(i) }, image = "tag:busybox",
            disposable = i % 2 == 0,
          } })
          assert(answer.status == 201, answer.body)
          local stream <close> = served.http:open {
            url = ("%s/v1/operations/%s/events?follow=1"):format(served.url, answer.json.uuid), bearer = served.token,
            timeout = 60,
          }
          while stream:read() do end -- luacheck: ignore
          local told = served:get("/operations/" .. answer.json.uuid).json
          assert(told.status == "SUCCESS" and output(told) == i .. "\n", told.error)
          finished = finished + 1
        end
      end
      bough.all(list)
    end)
    assert.equal(150, finished)
    fixture.until_true("all is stored", function() return next(served.server.app.operations.live) == nil end)
  end)
end)

describe("a server that ends", function()
  local home, pid, url, http

  local function start()
    local out = scratch.dir "serve" .. "/out"
    local line = ("BOUGH_BUILD=%s exec lua5.4 bin/bough serve --home %s --port 0 --image busybox --token %s --log none"
      .. " >%s 2>&1 & echo $!"):format(scratch.quote(os.getenv "BOUGH_BUILD" or "build"), scratch.quote(home),
      serving.TOKEN, scratch.quote(out))
    local pipe = assert(io.popen(line))
    pid = math.tointeger(tonumber((pipe:read "l")))
    pipe:close()
    url = fixture.until_true("the server", function()
      local text = fixture.read_file(out) or ""
      return text:match "(http://[%d.:]+)"
    end)
  end

  local function kill(name)
    os.execute(("kill -%s %d"):format(name, pid))
    fixture.until_true("its end", function() return not fixture.alive(pid) end)
  end

  local function request(method, path, body)
    local answer = http:request {
      url = url .. "/v1" .. path, method = method, bearer = serving.TOKEN, body = body and cjson.encode(body),
      timeout = 60,
    }
    local is_json = (answer.headers["content-type"] or ""):find "json"
    return is_json and cjson.decode(answer.body) or answer.body, answer.status
  end

  local function spawn(body)
    body.image = "tag:busybox"
    return request("POST", "/instances", body).uuid
  end

  local function finished(uuid)
    return fixture.until_true("the end of " .. uuid, function()
      local told = request("GET", "/operations/" .. uuid)
      return (told.status == "SUCCESS" or told.status == "FAILED" or told.status == "CANCELLED") and told
    end)
  end

  before_each(function()
    home = scratch.store()
    http = core.http()
    start()
  end)

  after_each(function()
    http:close()
    if fixture.alive(pid) then kill "TERM" end
  end)

  it("by kill -9 has what had ended, byte for byte, and has failed at what ran", function()
    local done = spawn { command = "echo done; echo x >/x; exit 3", shell = true }
    finished(done)
    local mark = fixture.long_time()
    local running = spawn { command = "echo begun; sleep " .. mark, shell = true }
    fixture.until_true("its output", function()
      return tostring(request("GET", "/operations/" .. running .. "/events")):find "event: stdout"
    end)
    local told, log = request("GET", "/operations/" .. done), request("GET", "/operations/" .. done .. "/events")
    local listed = request("GET", "/operations?status=SUCCESS")
    fixture.until_true("the journal has it", function() core.sleep(0.05) return true end)
    kill "KILL"
    fixture.gone("sleep " .. mark)
    start()
    assert.same(told, request("GET", "/operations/" .. done))
    assert.equal(log, request("GET", "/operations/" .. done .. "/events"))
    assert.same(listed, request("GET", "/operations?status=SUCCESS"))
    assert.equal("x\n", request("GET", "/inspect/" .. told.result.image .. "/download?path=/x"))
    local lost = request("GET", "/operations/" .. running)
    assert.same({ "FAILED", "the server stopped while it ran", cjson.null },
      { lost.status, lost.error, lost.result_image_uuid })
    assert.equal("sleep " .. mark, lost.metadata.command:match "sleep .*")
    local events = parse(request("GET", "/operations/" .. running .. "/events?follow=1"))
    assert.equal("init network spawn stdout completion", types(events))
    assert.same({ "FAILED", "the server stopped while it ran" },
      { events[5].data.data.status, events[5].data.data.error })
    local result = request("GET", "/operations/" .. running .. "/subprocesses/1")
    assert.same({ "begun\n", -1, 9 }, { bytes_of(result.stdout), result.state.exit_code, result.state.signal })
    assert.same({}, request("GET", "/operations?status=EXECUTING"))
    assert.equal(409, (select(2, request("DELETE", "/operations/" .. running))))
    -- and it goes on as ever
    assert.equal("SUCCESS", finished(spawn { command = "true" }).status)
  end)

  it("by SIGTERM ends what runs, and says so", function()
    local mark = fixture.long_time()
    local running = spawn { command = "sleep " .. mark, shell = true }
    fixture.until_true("it runs", function()
      return request("GET", "/operations/" .. running).status == "EXECUTING"
    end)
    os.execute(("kill -TERM %d; sleep 0.1; kill -TERM %d"):format(pid, pid)) -- the second one: at once
    fixture.until_true("its end", function() return not fixture.alive(pid) end)
    fixture.gone("sleep " .. mark)
    start()
    local lost = request("GET", "/operations/" .. running)
    assert.same({ "FAILED", "the server stopped while it ran" }, { lost.status, lost.error })
    local events = parse(request("GET", "/operations/" .. running .. "/events"))
    assert.equal("completion", events[#events].event)
    assert.equal(9, of_type(events, "exit", 1).signal)
  end)

  it("has its store for itself as long as it runs", function()
    local line = "BOUGH_BUILD=%s timeout 30 lua5.4 bin/bough serve --home %s --port 0 --token %s --log none; true"
    local build = os.getenv "BOUGH_BUILD" or "build"
    local text = scratch.sh(line:format(scratch.quote(build), scratch.quote(home), serving.TOKEN))
    assert.match("another server has it open", text, 1, true)
  end)
end)
