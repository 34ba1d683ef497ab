--- The commands of docs/serve.md, as they stand there, against a server.

local bough = require "bough"
local core = require "bough.core"
local registry = require "spec.support.registry"
local scratch = require "spec.support.scratch"
local serving = require "spec.support.serving"

-- The blocks of shell below a heading, in order.
local function blocks(path, heading)
  local file <close> = assert(io.open(path))
  local all, inside, current = {}, false, nil
  for line in file:lines() do
    if line:find "^## " then inside = line == "## " .. heading end
    if current then
      if line == "```" then
        all[#all + 1] = table.concat(current, "\n")
        current = nil
      else
        current[#current + 1] = line
      end
    elseif inside and line == "```sh" then
      current = {}
    end
  end
  return all
end

-- `text` with `old` replaced by `new`, which must be there.
local function replace(text, old, new)
  local first, last = text:find(old, 1, true)
  assert(first, ("the page does not have %q any more"):format(old))
  return text:sub(1, first - 1) .. new .. text:sub(last + 1)
end

describe("docs/serve.md", function()
  local served, source, output, parts

  setup(function()
    -- a registry with a busybox in it
    local box <close> = bough.open { home = scratch.store() }
    local layout = scratch.dir "busybox" .. "/layout"
    box.images:use("busybox"):export(layout, { tag = "latest" })
    source = registry.start()
    source:push(layout, "library/busybox:latest")
    served = serving.start { images = {}, insecure_registries = { source.host } }

    -- curl does not end where a sanitizer's runtime is preloaded
    local script = { "set -eu\nunset LD_PRELOAD\n" }
    for i, block in ipairs(blocks("docs/serve.md", "With curl")) do
      if i == 1 then
        block = replace(block, "CONTREE_URL=http://127.0.0.1:8080", "CONTREE_URL=" .. served.url)
        block = replace(block, "CONTREE_TOKEN=the-token-that-the-server-printed", "CONTREE_TOKEN=" .. served.token)
      end
      block = block:gsub("docker%.io/library", source.host .. "/library")
      script[#script + 1] = ("echo '== %d'\n%s\n"):format(i, block)
    end
    local path = scratch.file(table.concat(script, "\n"))
    local result = core.host_exec({
      argv = { "sh", path }, cwd = scratch.dir "curl", stdout = true, stderr = true,
    }):wait(120)
    output = result.stdout
    assert(result.exit_code == 0, output .. result.stderr)
    parts = {}
    for number, text in (output .. "\n== "):gmatch "== (%d+)\n(.-)%f[=]%f[=]" do
      parts[math.tointeger(tonumber(number))] = text
    end
  end)

  teardown(function()
    served:stop()
    source:stop()
  end)

  -- The output of the block that has these words in it.
  local function output_of(words)
    for i, block in ipairs(blocks("docs/serve.md", "With curl")) do
      if block:find(words, 1, true) then return parts[i] end
    end
    error("no block with " .. words)
  end

  it("asks who it is", function() assert.matches('"token_uuid":"', output_of "/v1/whoami") end)

  it("imports an image and finds it", function()
    local text = output_of "/v1/images/import"
    assert.matches('"status":"SUCCESS"', text)
    assert.matches('"kind":"image_import"', text)
    assert.matches('"tag":"busybox:latest"', output_of "/v1/images?tag=busybox")
  end)

  it("uploads a file", function() assert.matches("HTTP/1.1 200", output_of "hello.sh") end)

  it("follows a run and polls its result", function()
    local events = output_of "events?follow=1"
    assert.matches("event: init\n", events)
    assert.matches("event: stdout\n[^\n]*hello, world", events)
    assert.matches("event: completion\ndata: [^\n]*\n\n$", events)
    local operation = output_of "field result_image_uuid"
    assert.matches('"exit_code":0', operation)
    assert.matches('"value":"hello, world\\n"', operation)
  end)

  it("looks into the image", function()
    local text = output_of "text=1"
    assert.matches("%-rwxr%-xr%-x +%d root +root +%d+ %S+ %S+ hello.sh\n", text)
    assert.matches("srv/hello.sh\n", text)
    assert.matches('"line_text":"echo \\"hello, $name\\"\\n"', text)
  end)

  it("tags", function() assert.matches('"tag":"team/hello:1"', output_of "-X PATCH") end)

  it("talks to a second process", function()
    assert.matches('"value":"one\\ntwo\\n"', output_of "/subprocesses/$spid")
  end)

  it("cancels", function() assert.matches('"status":"CANCELLED"', output_of "kind=instance") end)
end)
