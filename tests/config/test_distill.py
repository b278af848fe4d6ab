from __future__ import annotations

import pytest
from recipes import BASE, mistakes

from condistill.config.recipe import Recipe


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("distill.steps=1.5", "distill.steps: input should be a valid integer"),
        ("distill.optimizer.ema_decay=1.5", "distill.optimizer.ema_decay: input should be less than or equal to 1"),
        ("distill.gradient_checkpointing=1", "distill.gradient_checkpointing: input should be a valid boolean"),
        ("distill.mixed_precision=fp8", "distill.mixed_precision: input should be 'no', 'fp16' or 'bf16'"),
        ("distill.optimizer.warmup_steps=5", "lr_scheduler 'constant' has no warm-up"),
        ("distill.micro_batch_size=100", "distill.batch_size 256 is not a multiple of distill.micro_batch_size 100"),
        ("distill={loss: {output_weight: 0, feature_weight: 0}}", "every loss weight is 0"),
        ("distill.path={start: nose}", "distill.path.start: input should be 'cache' or 'noise'"),
        ("distill.path={share: 0}", "distill.path.share: input should be greater than 0"),
        ("distill.path={stpes: 3}", "distill.path.stpes is not a setting; did you mean 'steps'?"),
        ("distill={path: {start: noise}, loss: {task_weight: 1.0}}", "task_weight needs cached latents"),
        ("distill={loss: {feature_weight: 0, feature_normalization: teacher}}", "need a feature_weight above 0"),
        (
            "distill={loss: {feature_weight: 0, feature_layer_weights: {mid_block: 2.0}}}",
            "need a feature_weight above 0",
        ),
        (
            "distill={loss: {features: attention_maps}, gradient_checkpointing: true}",
            "cannot be recorded with distill.gradient_",
        ),
        ("distill.conditioning.probability.schedule=sgmoid", "'sgmoid' is unknown; use 'exponential', 'sigmoid'"),
        (
            "distill.guidance_distillation=1",
            "a guidance scale to distil is above 1, and a range of scales is [low, high] with 1 <",
        ),
        ("distill.guidance_distillation=true", "a guidance scale to distil is above 1"),
        ("distill.guidance_distillation=[8, 2]", "a guidance scale to distil is above 1"),
        ("distill.guidance_distillation=[2]", "a guidance scale to distil is above 1"),
        ("distill.guidance_distillation=[1, 2]", "a guidance scale to distil is above 1"),
        ("distill.guidance_distillation=[2, .inf]", "a guidance scale to distil is above 1"),
        ("distill.few_steps={method: consitency}", "'consitency' is unknown; use 'progressive', 'consistency'"),
        ("distill.few_steps={method: consistency}", "distill.few_steps.num_inference_steps is missing"),
        (
            "distill.few_steps={method: consistency, num_inference_steps: 4, teacher_steps: 2}",
            "distill.few_steps.teacher_steps is not a setting",
        ),
        ("distill.few_steps={num_inference_steps: 4, solver_steps: 50}", "distill.few_steps.solver_steps is not a"),
        (
            "distill.few_steps={method: consistency, num_inference_steps: 60}",
            "num_inference_steps 60 is more than the student is trained at: solver_steps 50",
        ),
        (
            "distill={few_steps: {method: consistency, num_inference_steps: 4}, path: {}}",
            "few_steps.method 'consistency' learns at isolated samples",
        ),
        ("distill.path={share: 0.001}", "distill.path.share 0.001 of distill.batch_size 256 is 0.256 samples"),
        ("distill.path={steps: 30}", "distill.path.steps 30 is more than distill.path.num_inference_steps 25"),
        ("distill={path: {guidance_scale: 2.0}, guidance_distillation: 2.0}", "leave out distill.path.guidance_scale"),
        (
            "distill={path: {start: noise}, conditioning: {timestep_bias: 1.0}}",
            "distill.conditioning.timestep_bias applies to isolated samples",
        ),
        ("distill={guidance_distillation: 3.0, loss: {guidance_weight: 1.0}}", "choose one"),
        ("distill={few_steps: {num_inference_steps: 4}, path: {}}", "path.num_inference_steps is 25"),
        (
            "distill={few_steps: {num_inference_steps: 4}, loss: {task_weight: 1.0}}",
            "distill.few_steps has its own targets",
        ),
        ("distill.few_steps={num_inference_steps: 4, teacher_stps: 2}", "did you mean 'teacher_steps'?"),
        ("distill.conditioning.prompt_choice={candidats: 2}", "did you mean 'candidates'?"),
        (
            "distill.conditioning.prompt_choice={candidates: 0}",
            "distill.conditioning.prompt_choice.candidates: input should be greater than 0",
        ),
        (
            "distill.conditioning.prompt_choice={interpolate: 1.5}",
            "interpolate: input should be less than or equal to 1",
        ),
        ("distill.conditioning.prompt_choice={distance: -1.0}", "distance: input should be greater than or equal to 0"),
        ("distill.conditioning.prompt_choice={distance: .inf}", "distance: input should be a finite number"),
        ("distill.conditioning.prompt_choice={clusters: 1}", "clusters: input should be greater than or equal to 2"),
        (
            "distill.conditioning.prompt_choice={source_weights: {miniature: -1}}",
            "input should be greater than or equal to 0",
        ),
        ("distill.conditioning.prompt_choice={source_weights: {miniature: 0}}", "source_weights has no weight above 0"),
        (
            "distill.conditioning.prompt_choice={candidates: 2, disagreement: 1, interpolate: 1}",
            "disagreement learns from prompts that are not blended; set interpolate below 1",
        ),
        ("distill.conditioning.prompt_choice={source_weights: {}}", "source_weights has no weight above 0"),
        (
            "distill.conditioning.prompt_choice={source_weights: {minature: 1.0}}",
            "source_weights names 'minature', which is not a file of the prompt pool; did you mean 'miniature'?",
        ),
        (
            "distill.conditioning.prompt_choice={novelty: 1.0}",
            "choose among candidates, and candidates is 1; set candidates to 2 or more",
        ),
        ("distill.conditioning.prompt_choice={candidates: 4}", "candidates is 4, but nothing ranks them"),
        (
            "distill.conditioning.prompt_choice={candidates: 4, novelty: 1.0, clusters: 8}",
            "clusters is 8 but is used only if disagreement is above 0; leave it out",
        ),
        (
            "distill={conditioning: {prompt_choice: {}, probability: {schedule: none}}}",
            "no sample gets a random prompt; set it to null",
        ),
        (
            "distill={conditioning: {prompt_choice: {}, probability: {schedule: constant, probability: 0}}}",
            "no sample gets a random prompt; set it to null",
        ),
        (
            "distill={conditioning: {prompt_choice: {distance: 1.0}, probability: {schedule: constant}}}",
            "a schedule that depends on the noise level, such as 'exponential' or 'sigmoid'",
        ),
        (
            "distill={conditioning: {prompt_choice: {distance: 1.0}}, path: {start: noise}}",
            "of cached latents; use it with cached latents",
        ),
        (
            "distill={conditioning: {prompt_choice: {interpolate: 0.5}}, path: {}}",
            "prompt_choice.interpolate applies to re-paired samples",
        ),
        (
            "distill={conditioning: {prompt_choice: {candidates: 2, disagreement: 1.0}}, path: {}}",
            "prompt_choice.disagreement applies to re-paired samples that are not on a path, and there are none",
        ),
        (
            "distill={conditioning: {prompt_choice: {interpolate: 0.5}, probability: {schedule: none}}, "
            "path: {start: noise, share: 0.5}}",
            "prompt_choice.interpolate applies to re-paired samples",
        ),
        (
            "distill={conditioning: {prompt_choice: {candidates: 2, novelty: 1.0}}, path: {start: noise}}",
            "prompt_choice.novelty is the distance to cached prompts, and none is used",
        ),
    ],
)
def test_a_wrong_setting_of_distillation_is_refused_with_its_key(override: str, message: str) -> None:
    (line,) = mistakes(BASE, override)
    assert message in line
    contradiction = ("distill: ", "distill.optimizer: ", "recipe: ")  # two settings: the line names their section
    assert line.startswith((f"override {override}: ", *contradiction))


@pytest.mark.parametrize(
    "distill",
    [
        "{conditioning: {prompt_choice: {distance: 1.0}}, path: {start: cache}}",
        "{conditioning: {prompt_choice: {distance: 1.0, interpolate: 0.5}}, path: {start: noise, share: 0.5}}",
        "{conditioning: {prompt_choice: {}, probability: {schedule: none}}, path: {start: noise}}",
        "{conditioning: {prompt_choice: {candidates: 2, disagreement: 1.0, clusters: 8}, "
        "probability: {schedule: constant}}}",
        "{conditioning: {prompt_choice: {source_weights: {miniature: 2.0}}}}",
    ],
)
def test_a_prompt_choice_is_accepted_if_there_are_samples_for_it(distill: str) -> None:
    recipe = Recipe.parse(BASE, [f"distill={distill}"])
    assert recipe.distill.conditioning.prompt_choice is not None
    assert Recipe.parse(recipe.to_yaml()) == recipe
